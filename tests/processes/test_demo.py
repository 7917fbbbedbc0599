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


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The workdir and the output of a demo that nobody disturbed."""
    workdir = tmp_path_factory.mktemp("finished") / "demo"
    with Process(["python", "demo.py", str(workdir)], limit_s=200) as demo:
        return workdir, demo.wait()


def test_demo_trains_publishes_serves_and_answers(finished: tuple[Path, str]) -> None:
    workdir, output = finished
    accuracies = re.findall(r"accuracy .*?(0\.\d{4})", output.split("demo: serving it")[1])
    assert len(accuracies) == 2
    assert accuracies[0] == accuracies[1]
    assert float(accuracies[0]) >= 0.97
    summary = json.loads((workdir / "summary.json").read_text())
    assert summary["workers"] == 2
    for made in ("checkpoints", "logs/worker-1.log", "tensorboard", "model/1/saved_model.pb"):
        assert (workdir / made).exists(), made
    assert not re.search(r"\b[IWE]0000 |WARNING|Traceback", output), "noise reached the terminal"
    assert running(workdir) == []


@pytest.mark.parametrize("moment", ["demo: training", r"tfdp: step 1/"])
def test_ctrl_c_while_it_trains_leaves_nothing_running(moment: str, tmp_path: Path) -> None:
    with Process(["python", "demo.py", str(tmp_path / "demo")], limit_s=200) as demo:
        assert_ctrl_c_ends(demo, moment, tmp_path)


def assert_ctrl_c_ends(demo: Process, moment: str, folder: Path) -> None:
    demo.wait_for(moment)
    os.killpg(demo.pid, signal.SIGINT)  # as a terminal does
    demo.wait(expect=130)
    wait_until(lambda: running(folder) == [], 5, f"{running(folder)} are gone")


# The demo without its training.
SCRIPT = """
import sys, numpy as np, demo
demo.WORKDIR = demo.Path(sys.argv[1])
demo.clear = lambda _: None
demo.train = lambda: demo.json.loads((demo.WORKDIR / "summary.json").read_text())
{change}
try:
    demo.main()
except KeyboardInterrupt:
    sys.exit(130)
"""


@pytest.mark.parametrize("moment", ["demo: serving it", "serving.server: ready"])
def test_ctrl_c_while_it_serves_leaves_nothing_running(
    moment: str, finished: tuple[Path, str]
) -> None:
    workdir, _ = finished
    command = ["python", "-c", SCRIPT.format(change=""), str(workdir)]
    with Process(command, limit_s=120) as demo:
        assert_ctrl_c_ends(demo, moment, workdir)


def test_a_wrong_answer_ends_the_demo_with_an_error(finished: tuple[Path, str]) -> None:
    """The demo compares served answers with evaluated ones; here they differ."""
    change = """
demo.server = lambda: demo.contextlib.nullcontext("127.0.0.1:1")
demo.Client.wait_until_ready = lambda *_: None
demo.Client.predict = lambda *_: {"outputs": np.eye(10)[np.zeros(359, int)]}
"""
    command = ["python", "-c", SCRIPT.format(change=change), str(finished[0])]
    with Process(command, limit_s=60) as demo:
        assert "answers differently" in demo.wait(expect=1)
