"""``python -m tfdp.evaluate``: checkpoints and published versions, by one process and by two."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from tests.processes.recipes import small
from tests.processes.test_train import RECIPE, command
from tests.processes.workers import Workers
from tests.running import run

EVALUATE = ["python", "-m", "tfdp.evaluate", f"--recipe={RECIPE}"]


@pytest.fixture(scope="module")
def workdir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a finished run, with a checkpoint in its middle."""
    folder = tmp_path_factory.mktemp("run")
    run(command(folder, "--steps=20", "--checkpoint_every_steps=8"))
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
    told = result(run([*EVALUATE, f"--workdir={workdir}", "--global_batch_size=17"]))
    assert told["checkpoint"] == str(workdir / "checkpoints" / "20")
    assert told["eval_metrics"] == pytest.approx(scores_by_hand(workdir, 20), rel=1e-5)
    of_training = json.loads((workdir / "summary.json").read_text())["eval_metrics"]
    assert told["eval_metrics"] == pytest.approx(of_training, rel=1e-6)
    assert {path: path.stat().st_mtime_ns for path in workdir.rglob("*")} == before


def test_an_earlier_checkpoint_on_two_workers_into_a_file(workdir: Path, tmp_path: Path) -> None:
    flags = [f"--workdir={workdir}", "--step=8", "--global_batch_size=5"]
    with Workers([[*EVALUATE, *flags, f"--output={tmp_path / 'scores.json'}"]] * 2) as workers:
        assert workers.wait(0, 0) == ["", ""]
    told = result((tmp_path / "scores.json").read_text())
    assert told["workers"] == 2
    assert told["eval_metrics"] == pytest.approx(scores_by_hand(workdir, 8), rel=1e-5)


def test_a_published_version_on_two_workers(workdir: Path) -> None:
    with Workers([[*EVALUATE, f"--version={workdir / 'model' / '1'}"]] * 2) as workers:
        chief, other = workers.wait(0, 0)
    assert other == ""
    assert result(chief)["eval_metrics"] == pytest.approx(scores_by_hand(workdir, 20), rel=1e-5)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ([], "give one of --workdir .* and --version"),
        (["--workdir={workdir}", "--version={workdir}"], "give one of --workdir"),
        (["--version={workdir}/model/1", "--step=8"], "--step=8 is of a run's checkpoint"),
        (["--workdir={workdir}/none"], "there is no .*none/checkpoints"),
        (["--workdir={workdir}", "--step=9"], r"no sound checkpoint of step 9: .*\[8, 16, 20\]"),
        (["--workdir={workdir}", "--hparam=units=3"], "the checkpoint is of another model"),
        (["--version={workdir}"], "can't be loaded: .*name the folder of a version"),
    ],
)
def test_what_can_not_be_evaluated_is_said(flags: list[str], said: str, workdir: Path) -> None:
    output = run([*EVALUATE, *(flag.format(workdir=workdir) for flag in flags)], expect=2)
    assert re.search(said, output), output
    assert output.count("\n") == 1
