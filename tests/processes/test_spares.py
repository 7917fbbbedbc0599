"""The launcher's spares, with a small stand-in for ``tfdp.train`` that waits as it does."""

from __future__ import annotations

import re
import signal
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import psutil
import pytest

from cluster.launching import spares
from tests.running import Process, wait_until

LIMIT_S = 60
LAUNCHER = """
import sys
from cluster import launch
from cluster.launching import spares
spares.START_DELAY_S = 1.0
sys.exit(launch.main(sys.argv[1:]))
"""
STAND_IN = """
import json, os, time
from cluster.launching import spares

def prepare():
    print("printed by a spare", flush=True)

if spares.wait_until_needed(prepare):
    index = json.loads(os.environ["TF_CONFIG"])["task"]["index"]
    print(f"index {index} pid {os.getpid()}", flush=True)
    while not os.path.exists("finish"):
        time.sleep(0.02)
"""


def is_spare(process: psutil.Process) -> bool:
    has_input = Path(f"/proc/{process.pid}/fd/0").readlink().name.startswith("pipe:")
    return has_input and spares.VARIABLE in process.environ()


def spares_of(launcher: Process) -> dict[int, int]:
    """Process ids of the waiting spares, by index."""
    children = psutil.Process(launcher.pid).children()
    return {
        int(child.environ()[spares.VARIABLE]): child.pid for child in children if is_spare(child)
    }


def workers_in(output: str) -> list[tuple[int, int]]:
    """Index and process id of each worker that has started, in order of time."""
    matches = re.findall(r"^\[worker (\d)\] index \1 pid (\d+)$", output, re.MULTILINE)
    return [(int(index), int(pid)) for index, pid in matches]


def start(stack: ExitStack, folder: Path, *flags: str) -> Process:
    """Starts two workers that run until a file ``finish`` exists."""
    (folder / "tfdp").mkdir(parents=True)
    (folder / "tfdp" / "__init__.py").touch()
    (folder / "tfdp" / "train.py").write_text(STAND_IN)
    launch = ("python", "-c", LAUNCHER, "--workers=2", "--max_restarts=3", *flags)
    command = [*launch, "--", "python", "-m", "tfdp.train"]
    return stack.enter_context(Process(command, cwd=folder, limit_s=LIMIT_S))


def wait_for_workers(launcher: Process, starts: int) -> None:
    wait_until(lambda: len(workers_in(launcher.output)) == starts, LIMIT_S, "workers run")


def wait_for_spares(launcher: Process) -> None:
    wait_until(lambda: len(spares_of(launcher)) == 2, LIMIT_S, "spares wait")


def finish(launcher: Process) -> str:
    (Path(psutil.Process(launcher.pid).cwd()) / "finish").touch()
    return launcher.wait()


@pytest.fixture(scope="module")
def launchers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Process]]:
    """Launchers that run side by side, with their spares waiting."""
    folder = tmp_path_factory.mktemp("spares")
    with ExitStack() as stack:
        flags_of = {"none": ("--no-spares",), "replaced": (), "died": (), "killed": ()}
        launchers = {name: start(stack, folder / name, *flags) for name, flags in flags_of.items()}
        for name, flags in flags_of.items():
            wait_for_workers(launchers[name], 2)
            if not flags:
                wait_for_spares(launchers[name])
        yield launchers


def test_spares_replace_the_workers_at_a_restart(launchers: dict[str, Process]) -> None:
    launcher = launchers["replaced"]
    waiting = spares_of(launcher)
    first = dict(workers_in(launcher.output))
    assert not set(first.values()) & set(waiting.values())
    assert "printed by a spare" not in launcher.output
    psutil.Process(first[1]).kill()
    wait_for_workers(launcher, 4)
    assert dict(workers_in(launcher.output)[2:]) == waiting
    output = finish(launcher)
    assert output.count("printed by a spare") == 2
    assert output.count("ended with") == 0


def test_a_worker_whose_spare_died_starts_without_one(launchers: dict[str, Process]) -> None:
    launcher = launchers["died"]
    waiting = spares_of(launcher)
    psutil.Process(waiting[0]).kill()
    first = dict(workers_in(launcher.output))
    psutil.Process(first[0]).kill()
    wait_for_workers(launcher, 4)
    again = dict(workers_in(launcher.output)[2:])
    assert again[1] == waiting[1]
    assert again[0] not in (waiting[0], first[0])
    # Both get new spares, which end with the run.
    wait_for_spares(launcher)
    left = [psutil.Process(pid) for pid in spares_of(launcher).values()]
    finish(launcher)
    assert psutil.wait_procs(left, timeout=10)[1] == []


def test_spares_die_with_a_killed_launcher(launchers: dict[str, Process]) -> None:
    launcher = launchers["killed"]
    children = psutil.Process(launcher.pid).children()
    assert sum(map(is_spare, children)) == 2
    launcher.signal(signal.SIGKILL)
    launcher.wait(-signal.SIGKILL)
    assert psutil.wait_procs(children, timeout=10)[1] == []


def test_the_launcher_can_do_without_spares(launchers: dict[str, Process]) -> None:
    children = psutil.Process(launchers["none"].pid).children()
    assert sum(map(is_spare, children)) == 0
    assert len(children) == 3, "two workers and the watchdog"
