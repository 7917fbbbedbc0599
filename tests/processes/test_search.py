"""``python -m tfdp.tune`` with real runs: killed, beside an undisturbed one; published; refused."""

from __future__ import annotations

import json
import random
import re
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
SEARCH = ("--trials=3", "--prune=asha", "--first_rung_steps=4", "--seed=4")
GATE = "--require_min=accuracy:0.1"


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("recipe") / "searched.py"
    path.write_text(RECIPE)
    return str(path)


@pytest.fixture(scope="module")
def searched(recipe: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The workdir of a search that nobody disturbed, one trial after the other."""
    workdir = tmp_path_factory.mktemp("searched") / "search"
    output = run(command(recipe, workdir, *SEARCH, GATE, of_trials=OF_TRIALS), limit_s=300)
    assert re.search(r"best: trial \d, accuracy .* with kind ", output)
    assert re.search(rf"trial \d is published as {workdir}/model/1", output)
    return workdir


@pytest.mark.timeout(600)
def test_a_killed_search_is_an_undisturbed_one_in_other_slots(
    recipe: str, searched: Path, tmp_path: Path
) -> None:
    killed = tmp_path / "killed"
    flags = (*SEARCH, "--parallel=2", "--export_dir=none")
    words = command(recipe, killed, *flags, of_trials=OF_TRIALS)
    assert len(run_killed(words, ["trial", "all"], random.Random(1), within_s=6.0)) == 2
    assert_alike(searched, killed)

    # A trial that was judged on the way is the run that nobody judged.
    found = json.loads((killed / "search.json").read_text())
    trial = next(each for each in found["trials"] if len(each["rungs"]) == 2)
    hparams = [f"--hparam={name}={value}" for name, value in trial["hparams"].items()]
    plain = ["python", "-m", "tfdp.train", f"--recipe={recipe}", f"--workdir={tmp_path / 'plain'}"]
    env = {"TF_NUM_INTRAOP_THREADS": "1"}
    run([*plain, "--export_dir=none", *hparams, *OF_TRIALS], env=env)
    summary = json.loads((tmp_path / "plain" / "summary.json").read_text())
    assert summary["weights_sha256"] == trial["weights_sha256"]
    assert summary["eval_metrics"]["accuracy"] == trial["objective"]
    assert found["best"]["objective"] == max(
        each["objective"] for each in found["trials"] if each["state"] == "complete"
    )


@pytest.mark.timeout(400)
def test_the_best_is_published_once_and_another_search_is_refused(
    recipe: str, searched: Path
) -> None:
    found = json.loads((searched / "search.json").read_text())
    about = json.loads((searched / "model" / "1" / "tfdp.json").read_text())
    assert found["finished"] and about["weights_sha256"] == found["best"]["weights_sha256"]

    again = run(command(recipe, searched, *SEARCH, GATE, of_trials=OF_TRIALS))
    assert "3 of 3 trials are done" in again and "published" not in again
    assert [path.name for path in (searched / "model").glob("[0-9]*")] == ["1"]

    other = run(
        command(recipe, searched, *SEARCH[:-1], "--seed=5", of_trials=["--steps=5"]), expect=2
    )
    assert (
        "belongs to another search: --epochs was 3 and is None; --global_batch_size was 16 "
        in other
    )
    assert "--steps was None and is 5" in other and "seed was 4 and is 5" in other
    refused = run(
        command(recipe, searched, *SEARCH, "--require_min=accuracy:1.1", of_trials=OF_TRIALS),
        expect=1,
    )
    assert "below --require_min=accuracy:1.1" in refused


@pytest.mark.parametrize(
    ("flags", "of_trials", "message"),
    [
        (["--objective=nope:max"], [], "evaluations of recipe .* give loss, accuracy"),
        (["--epochs=3"], [], "--epochs is a flag of the trials' runs: put it after --"),
        ([], ["--workdir=elsewhere"], "--workdir after -- is set by the search"),
        ([], ["--hparam=rate=0.1"], "it chooses rate, and --hparam=rate fixes it"),
    ],
)
def test_what_is_wrong_is_said_before_a_trial_starts(
    flags: list[str], of_trials: list[str], message: str, recipe: str, tmp_path: Path
) -> None:
    words = command(recipe, tmp_path, "--trials=2", *flags, of_trials=of_trials)
    assert re.search(message, run(words, expect=2))
    assert not (tmp_path / "trials").exists()
