"""``python -m tfdp.evaluate``: checkpoints and published versions, by one process and by two."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import tensorflow as tf

from tests.processes.recipes import small
from tests.processes.test_train import RECIPE, assert_only_own_words, command, summary
from tests.processes.workers import Workers
from tests.running import run
from tfdp.checkpoints.reading import read_of_step
from tfdp.errors import BadInput
from tfdp.run.settings import EvaluateSettings
from tfdp.workers.collectives import workers_of

EVALUATE = ["python", "-m", "tfdp.evaluate", f"--recipe={RECIPE}"]


@pytest.fixture(scope="module")
def workdir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The workdir of a finished run of one process, with a checkpoint in its middle."""
    folder = tmp_path_factory.mktemp("run")
    output = run(command(folder, "--steps=20", "--checkpoint_every_steps=8"))
    assert f"finished at step 20, published as {folder}/model/1" in output
    assert_only_own_words(output)
    assert summary(folder)["workers"] == summary(folder)["replicas"] == 1
    return folder


def scores_by_hand(workdir: Path, step: int) -> dict[str, float]:
    """The small recipe's model and metrics, in NumPy, on its held-out examples."""
    state = safetensors.numpy.load_file(workdir / "checkpoints" / str(step) / "state.safetensors")
    weights = [array for name, array in sorted(state.items()) if name.startswith("model/")]
    kernel, bias, last_kernel, last_bias = (each for each in weights if each.dtype == np.float32)
    features, labels = small.examples(33, 4, seed=2)
    rows = np.maximum(features / 100.0 @ kernel + bias, 0) @ last_kernel + last_bias
    return {
        "loss": float(np.mean(np.square(rows - labels))),
        "mae": float(np.mean(np.abs(rows - labels))),
    }


def result(output: str) -> dict[str, Any]:
    return json.loads(output)  # type: ignore[no-any-return]


def test_the_newest_checkpoint(workdir: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in workdir.rglob("*")}
    found = result(run([*EVALUATE, f"--workdir={workdir}", "--global_batch_size=17"]))
    assert found["checkpoint"] == str(workdir / "checkpoints" / "20")
    assert found["eval_metrics"] == pytest.approx(scores_by_hand(workdir, 20), rel=1e-5)
    of_training = summary(workdir)["eval_metrics"]
    assert found["eval_metrics"] == pytest.approx(of_training, rel=1e-6)
    assert {path: path.stat().st_mtime_ns for path in workdir.rglob("*")} == before


def test_an_earlier_checkpoint_on_two_workers_into_a_file(workdir: Path, tmp_path: Path) -> None:
    flags = [f"--workdir={workdir}", "--step=8", "--global_batch_size=5"]
    with Workers([[*EVALUATE, *flags, f"--output={tmp_path / 'scores.json'}"]] * 2) as workers:
        assert workers.wait(0, 0) == ["", ""]
    found = result((tmp_path / "scores.json").read_text())
    assert found["workers"] == 2
    assert found["eval_metrics"] == pytest.approx(scores_by_hand(workdir, 8), rel=1e-5)


def test_a_published_version_on_two_workers(workdir: Path) -> None:
    with Workers([[*EVALUATE, f"--version={workdir / 'model' / '1'}"]] * 2) as workers:
        chief, other = workers.wait(0, 0)
    assert other == ""
    assert result(chief)["eval_metrics"] == pytest.approx(scores_by_hand(workdir, 20), rel=1e-5)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--workdir={workdir}", "--hparam=units=3"], "the checkpoint is of another model"),
        (["--version={workdir}"], "can't be loaded: .*name the folder of a version"),
    ],
)
def test_what_can_not_be_evaluated_is_refused(
    flags: list[str], message: str, workdir: Path
) -> None:
    output = run([*EVALUATE, *(flag.format(workdir=workdir) for flag in flags)], expect=2)
    assert re.search(message, output), output
    assert output.count("\n") == 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "give one of --workdir .* and --version"),
        ({"workdir": Path("run"), "version": Path("version")}, "give one of --workdir"),
        ({"version": Path("version"), "step": 8}, "--step=8 is of a run's checkpoint"),
    ],
)
def test_flags_that_do_not_fit_together(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        EvaluateSettings(recipe=str(RECIPE), **settings)


def test_a_checkpoint_that_is_not_there_is_refused(workdir: Path) -> None:
    workers = workers_of(tf.distribute.get_strategy())
    with pytest.raises(BadInput, match=r"there is no .*none/checkpoints"):
        read_of_step(workers, workdir / "none", None)
    with pytest.raises(BadInput, match=r"no sound checkpoint of step 9: .*\[8, 16, 20\]"):
        read_of_step(workers, workdir, 9)
