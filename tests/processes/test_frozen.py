"""The launcher with workers that don't run at all: stopped by a signal, or waiting in the kernel.

It calls a worker frozen after 3 s here, instead of 20 s.
"""

from __future__ import annotations

import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.processes.test_launch import LIMIT_S, PRELUDE, marked, wait_until_gone
from tests.processes.test_launch import mark as mark  # a fixture
from tests.running import Process, wait_until

FROZEN_AFTER_S = 3
LAUNCHER = f"""
import sys
from cluster import launch, policy
policy.FROZEN_AFTER_S = {FROZEN_AFTER_S}
sys.exit(launch.main(sys.argv[1:]))
"""
# The first start sleeps. The next one finishes.
FIRST_SLEEPS = """
path = os.environ["STARTS"] + str(index)
if os.path.exists(path): say("finished"); sys.exit(0)
open(path, "w").close()
sleep()
"""
# The parent waits in the kernel (state D) until its child ends, which shares its memory.
WAITS_IN_KERNEL = """
import ctypes
if os.path.exists(os.environ["STARTS"]): sys.exit(0)
open(os.environ["STARTS"], "w").close()
if ctypes.CDLL(None).vfork() == 0: sleep()
"""


@pytest.fixture
def starts(tmp_path: Path) -> Iterator[dict[str, str]]:
    yield {"STARTS": str(tmp_path / "start")}


def command(script: str, mark: str, *flags: str) -> list[str]:
    launch = ("python", "-c", LAUNCHER, "--max_restarts=1", *flags)
    return [*launch, "--", "python", "-c", PRELUDE + script, mark]


def test_workers_that_are_all_stopped_are_started_again(mark: str, starts: dict[str, str]) -> None:
    with Process(
        command(FIRST_SLEEPS, mark, "--workers=2"), env=starts, limit_s=LIMIT_S
    ) as launcher:
        wait_until(lambda: launcher.output.count("asleep") == 2, LIMIT_S, "both workers sleep")
        victims = marked(mark, launcher)
        for victim in victims:
            victim.suspend()
        output = launcher.wait()
    for index in range(2):
        line = rf"\[launch\] worker {index} was frozen for \d s \(stopped by a signal\): sending "
        assert re.search(line + "SIGKILL to it", output)
    assert re.search(r"was frozen .*: starting again, restart 1 of 1\n", output)
    assert not any(victim.is_running() for victim in victims)


def test_a_worker_that_waits_in_the_kernel_is_started_again(
    mark: str, starts: dict[str, str]
) -> None:
    command_line = command(WAITS_IN_KERNEL, mark)
    with Process(command_line, env=starts, limit_s=LIMIT_S) as launcher:
        launcher.wait_for("asleep")
        states = [process.status() for process in marked(mark, launcher)]
        assert psutil.STATUS_DISK_SLEEP in states
        output = launcher.wait()
    assert re.search(r"worker 0 was frozen for \d s \(waiting in the kernel\): sending", output)
    assert output.count("[launch] worker 0 was frozen") == 2, "the second line starts it again"
    wait_until_gone(mark)


def test_time_in_which_the_launcher_was_stopped_too_does_not_count(mark: str) -> None:
    script = "sleep()"
    with Process(command(script, mark), limit_s=LIMIT_S) as launcher:
        launcher.wait_for("asleep")
        (worker,) = marked(mark, launcher)
        for process in (psutil.Process(launcher.pid), worker):
            process.suspend()
        time.sleep(2 * FROZEN_AFTER_S)
        psutil.Process(launcher.pid).resume()
        worker.resume()
        time.sleep(FROZEN_AFTER_S)
        assert worker.is_running()
        launcher.signal(signal.SIGTERM)
        assert "frozen" not in launcher.wait(143)
