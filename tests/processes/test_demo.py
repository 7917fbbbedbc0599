"""``make demo`` as a stranger sees it: it works, and Ctrl-C at any moment leaves nothing behind."""

from __future__ import annotations

import json
import os
import re
import signal
from pathlib import Path

import psutil
import pytest

from tests.running import Process, wait_until


def running(folder: Path) -> list[str]:
    """Command lines of all processes that name the folder."""
    lines = (
        " ".join(process.info["cmdline"] or []) for process in psutil.process_iter(["cmdline"])
    )
    return [line for line in lines if str(folder) in line]


def test_demo_trains_publishes_serves_and_answers(tmp_path: Path) -> None:
    workdir = tmp_path / "demo"
    with Process(["python", "demo.py", str(workdir)], limit_s=120) as demo:
        output = demo.wait()
    accuracies = re.findall(r"accuracy .*?(0\.\d{4})", output.split("demo: serving it")[1])
    assert len(accuracies) == 2
    assert accuracies[0] == accuracies[1]
    assert float(accuracies[0]) >= 0.97
    summary = json.loads((workdir / "summary.json").read_text())
    assert summary["workers"] == 2
    for made in ("checkpoints", "logs/worker-1.log", "tensorboard", "model/1/saved_model.pb"):
        assert (workdir / made).exists(), made
    assert not re.search(r"\b[IWE]0000 |WARNING|Traceback", output), "noise reached the terminal"
    assert running(tmp_path) == []


@pytest.mark.parametrize(
    "moment",
    ["demo: training", r"tfdp: step 1/", "demo: serving it", "serving.server: ready"],
)
def test_ctrl_c_at_any_moment_leaves_nothing_running(moment: str, tmp_path: Path) -> None:
    with Process(["python", "demo.py", str(tmp_path / "demo")], limit_s=120) as demo:
        demo.wait_for(moment)
        os.killpg(demo.pid, signal.SIGINT)  # what a terminal does
        demo.wait(expect=130)
        wait_until(lambda: running(tmp_path) == [], 5, f"{running(tmp_path)} are gone")


def test_a_wrong_answer_ends_the_demo_with_an_error(tmp_path: Path) -> None:
    """What is served is compared with what was evaluated; here that has to fail."""
    workdir = tmp_path / "demo"
    script = (
        "import sys, numpy as np, demo; "
        f"demo.WORKDIR = demo.Path({str(workdir)!r}); "
        "demo.train = lambda: {'steps': 1, 'workers': 2, 'export_path': '', "
        "'eval_metrics': {'accuracy': 0.99}}; "
        "demo.Client.wait_until_ready = lambda *_: None; "
        "demo.Client.predict = lambda *_: {'outputs': np.eye(10)[np.zeros(359, int)]}; "
        "demo.server = lambda: demo.contextlib.nullcontext('127.0.0.1:1'); "
        "demo.main()"
    )
    with Process(["python", "-c", script], limit_s=60) as demo:
        assert "answers differently" in demo.wait(expect=1)
