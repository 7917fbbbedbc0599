"""``python -m tfdp.tune`` with real runs: killed, beside an undisturbed one; published; refused."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from tests.processes.search_chaos import assert_alike, command, run_killed
from tests.running import run

RECIPE = """
import dataclasses
import keras
import numpy as np
import tfdp

@dataclasses.dataclass(frozen=True)
class HParams:
    rate: float = 0.1
    width: int = 4
    noise: float = 0.0

def search_space(trial):
    kind = trial.suggest_categorical("kind", ["plain", "noisy"])
    noise = trial.suggest_float("noise", 0.01, 0.3) if kind == "noisy" else 0.0
    rate = trial.suggest_float("rate", 1e-3, 1.0, log=True)
    return HParams(rate=rate, width=trial.suggest_int("width", 2, 8), noise=noise)

def build_model(hparams):
    layers = [keras.layers.Input((3,)), keras.layers.GaussianNoise(hparams.noise)]
    layers += [keras.layers.Dense(hparams.width, "tanh"), keras.layers.Dense(1, "sigmoid")]
    model = keras.Sequential(layers)
    model.compile(keras.optimizers.Adam(hparams.rate), "binary_crossentropy", metrics=["accuracy"])
    return model

def examples(seed):
    x = np.random.default_rng(seed).normal(size=(64, 3)).astype("float32")
    return tfdp.from_arrays(x, (x[:, :1] * x[:, 1:2] > 0).astype("float32"))

def train_data(hparams):
    return examples(1)

def eval_data(hparams):
    return examples(2)
"""
OF_TRIALS = ("--epochs=3", "--global_batch_size=16", "--checkpoint_every_steps=2")
SEARCH = ("--trials=4", "--prune=asha", "--first_rung_steps=4", "--export_dir=none", "--seed=4")


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("recipe") / "searched.py"
    path.write_text(RECIPE)
    return str(path)


@pytest.mark.timeout(600)
def test_a_killed_search_is_an_undisturbed_one_in_other_slots(recipe: str, tmp_path: Path) -> None:
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    run(command(recipe, undisturbed, *SEARCH, "--parallel=1", of_trials=OF_TRIALS), limit_s=300)
    words = command(recipe, killed, *SEARCH, "--parallel=2", of_trials=OF_TRIALS)
    kills = ["trial", "all"]
    assert len(run_killed(words, kills, random.Random(1), within_s=6.0)) == 2
    assert_alike(undisturbed, killed)

    # A trial that was judged on the way is the run that nobody judged.
    found = json.loads((killed / "search.json").read_text())
    trial = next(each for each in found["trials"] if len(each["rungs"]) == 2)
    hparams = [f"--hparam={name}={value}" for name, value in trial["hparams"].items()]
    plain = ["python", "-m", "tfdp.train", f"--recipe={recipe}", f"--workdir={tmp_path / 'plain'}"]
    env = dict.fromkeys(("TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS"), "1")
    run([*plain, "--export_dir=none", *hparams, *OF_TRIALS], env=env)
    summary = json.loads((tmp_path / "plain" / "summary.json").read_text())
    assert summary["weights_sha256"] == trial["weights_sha256"]
    assert summary["eval_metrics"]["accuracy"] == trial["objective"]
    assert found["best"]["objective"] == max(
        each["objective"] for each in found["trials"] if each["state"] == "complete"
    )
