"""Publishing by real commands: what metrics decide, checkpoints, and processes that are killed."""

from __future__ import annotations

import json
import re
import signal
from pathlib import Path
from typing import Any

import keras
import numpy as np
import psutil
import pytest
import safetensors.numpy

import tfdp
from tests.processes.test_train import RECIPE, command, summary, versions
from tests.running import Process, run, wait_until
from tests.tfdp.servables import loaded, warmup_requests
from tfdp.errors import TrainingError
from tfdp.publishing import load_check

EXPORT = ["python", "-m", "tfdp.export", f"--recipe={RECIPE}"]


def about(version: Path) -> dict[str, Any]:
    return json.loads((version / "tfdp.json").read_text())  # type: ignore[no-any-return]


def answers_of_checkpoint(workdir: Path, step: int, raw: np.ndarray) -> np.ndarray:
    """The small recipe's model, in NumPy."""
    state = safetensors.numpy.load_file(workdir / "checkpoints" / str(step) / "state.safetensors")
    weights = [array for name, array in sorted(state.items()) if name.startswith("model/")]
    kernel, bias, last_kernel, last_bias = (each for each in weights if each.dtype == np.float32)
    rows: np.ndarray = np.maximum(raw / 100.0 @ kernel + bias, 0) @ last_kernel + last_bias
    return rows


def test_metrics_decide_and_lower_gates_publish_what_is_trained(tmp_path: Path) -> None:
    workdir = tmp_path / "run"
    train = command(workdir, "--steps=12", "--checkpoint_every_steps=6", "--keep_versions=1")
    output = run([*train, "--require_max=mae:0.001"], expect=1)
    assert re.search(
        r"tfdp: not published: mae is \S+, above --require_max=mae:0.001\. The run is saved", output
    )
    assert versions(workdir) == []
    assert not (workdir / "summary.json").exists()

    output = run([*train, "--require_max=mae:100"])
    assert "published as" in output
    assert not re.search(r"step \d+/", output), "it trained again"
    version = workdir / "model" / "1"
    written, summed_up = about(version), summary(workdir)
    for name in ("weights_sha256", "eval_metrics", "metrics", "keras"):
        assert written[name] == summed_up[name], name
    assert written["step"] == 12
    assert written["data_sha256"] != written["eval_data_sha256"]

    # An earlier checkpoint of the same run, with its own weights.
    flags = ["--step=6", "--keep_versions=2", "--warmup_batch_sizes=5"]
    output = run([*EXPORT, f"--workdir={workdir}", "--not_worse_than_current=1000", *flags])
    assert output == f"tfdp: step 6 is published as {workdir / 'model' / '2'}\n"
    assert versions(workdir) == ["1", "2"]
    (request,) = warmup_requests(workdir / "model" / "2")
    raw = np.frombuffer(request.inputs["features"].tensor_content, np.int32).reshape(5, 6)
    with loaded(workdir / "model" / "2") as servable:
        answer = servable.ask(features=raw)["outputs"]
    np.testing.assert_allclose(answer, answers_of_checkpoint(workdir, 6, raw), rtol=1e-4, atol=1e-5)


def test_what_can_not_be_published_is_said(tmp_path: Path) -> None:
    output = run([*EXPORT, f"--workdir={tmp_path}"], expect=2)
    assert re.fullmatch(r"tfdp: there is no .*/checkpoints: --workdir has to .*\n", output)


PUBLISHER = """
import sys
import keras, tfdp
model = keras.Sequential([keras.layers.Input((4,)), keras.layers.Dense(3)])
print(tfdp.export(model, sys.argv[1]))
"""


def test_a_killed_publisher_leaves_nothing_and_nobody(tmp_path: Path) -> None:
    with Process(["python", "-c", PUBLISHER, str(tmp_path)], limit_s=100) as publisher:
        parent = psutil.Process(publisher.pid)

        def asking() -> list[psutil.Process]:
            return [each for each in parent.children() if is_load_check(each)]

        (child,) = wait_until(asking, 90, "the fresh process is started")
        assert list(tmp_path.glob(".unpublished-*/saved_model.pb"))
        publisher.signal(signal.SIGKILL)
        publisher.wait(-signal.SIGKILL)
        wait_until(lambda: not child.is_running() or gone(child), 20, "it has ended, too")
    assert not [path for path in tmp_path.iterdir() if not path.name.startswith(".")]


def is_load_check(process: psutil.Process) -> bool:
    try:
        return "load_check_process.py" in " ".join(process.cmdline())
    except psutil.Error:  # another child, which has just ended
        return False


def gone(process: psutil.Process) -> bool:
    try:
        return bool(process.status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


def test_a_version_that_can_not_be_asked_in_time_or_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = keras.Sequential([keras.layers.Input((4,)), keras.layers.Dense(3)])
    monkeypatch.setattr(load_check, "LIMIT_S", 0.05)
    with pytest.raises(TrainingError, match=r"did not answer within 0.05 s in a fresh process"):
        tfdp.export(model, tmp_path)
    assert not list(tmp_path.iterdir())
    monkeypatch.undo()
    (tmp_path / "saved_model.pb").write_bytes(b"no model")
    with pytest.raises(TrainingError, match=r"fresh process, as TF Serving would: .* with 1: \S+"):
        load_check.check(tmp_path, [], [], 0.0)
