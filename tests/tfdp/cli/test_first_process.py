from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path

import pytest

from tests.running import Process, run, wait_until

NAMESPACE = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"]
START = "import os, signal, sys, time; from tfdp.cli import first_process; "
GO_ON = START + "first_process.go_on_in_a_child(); print('pid', os.getpid(), flush=True); "


@pytest.fixture(autouse=True)
def namespaces() -> None:
    if os.geteuid() != 0 or shutil.which("unshare") is None:
        pytest.skip("process namespaces need root and util-linux (unshare)")


def first_process(process: Process) -> int:
    """The number that the first process of the namespace has outside of it."""
    path = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    return int(wait_until(lambda: path.read_text().split(), 20, "the first process is there")[0])


@pytest.mark.parametrize(
    ("end", "code"),
    [
        ("pass", 0),
        ("sys.exit(2)", 2),
        ("os._exit(138)", 138),
        ("os.kill(os.getpid(), signal.SIGUSR1)", 138),
        ("signal.alarm(1); time.sleep(60)", 142),
        ("os.kill(os.getpid(), signal.SIGKILL)", 137),
    ],
)
def test_the_first_process_ends_as_the_worker_does(end: str, code: int) -> None:
    assert "pid 2\n" in run([*NAMESPACE, "python", "-c", GO_ON + end], code)


def test_a_worker_that_is_the_first_process_is_not_ended_by_its_own_signals() -> None:
    """The reason for all of this."""
    script = START + "os.kill(os.getpid(), signal.SIGUSR1); print('still here')"
    assert "still here" in run([*NAMESPACE, "python", "-c", script])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_from_outside_reach_the_worker(number: signal.Signals) -> None:
    wait = f"signal.signal({int(number)}, lambda *_: sys.exit(77)); print('ready', flush=True); "
    with Process([*NAMESPACE, "python", "-c", GO_ON + wait + "time.sleep(60)"]) as process:
        process.wait_for("ready")
        os.kill(first_process(process), number)
        process.wait(77)


def test_processes_that_others_left_behind_are_waited_for_and_change_nothing() -> None:
    leave = """
if os.fork() == 0:  # 3
    os._exit(os.fork() and 9)  # 4 is left behind
os.wait()
while os.path.exists("/proc/4"):
    time.sleep(0.01)
os._exit(5)
"""
    run([*NAMESPACE, "python", "-c", GO_ON + leave], 5)


def test_any_other_process_stays_what_it_is() -> None:
    script = START + "pid = os.getpid(); first_process.go_on_in_a_child(); "
    run(["python", "-c", script + "sys.exit(os.getpid() - pid)"])
