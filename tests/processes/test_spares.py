"""The launcher's spares, with a small stand-in for ``tfdp.train`` that waits as it does."""

from __future__ import annotations

import re
import signal
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import psutil
import pytest

from cluster import spares
from tests.running import Process, wait_until

LIMIT_S = 60
STAND_IN = """
import json, os, time
from cluster import spares

def prepare():
    print("said while it waits", flush=True)

if spares.wait_until_needed(prepare):
    place = json.loads(os.environ["TF_CONFIG"])["task"]["index"]
    print(f"place {place} pid {os.getpid()}", flush=True)
    while not os.path.exists("finish"):
        time.sleep(0.02)
"""


def is_spare(process: psutil.Process) -> bool:
    waits = Path(f"/proc/{process.pid}/fd/0").readlink().name.startswith("pipe:")
    return waits and spares.VARIABLE in process.environ()


def spares_of(launcher: Process) -> dict[int, int]:
    """Process numbers of those that wait, by place."""
    children = psutil.Process(launcher.pid).children()
    return {int(each.environ()[spares.VARIABLE]): each.pid for each in children if is_spare(each)}


def workers_in(output: str) -> list[tuple[int, int]]:
    """Place and process number of each worker that has begun."""
    found = re.findall(r"^\[worker (\d)\] place \1 pid (\d+)$", output, re.MULTILINE)
    return [(int(place), int(pid)) for place, pid in found]


def start(stack: ExitStack, folder: Path, module: str, *flags: str) -> Process:
    """Two workers that run until there is a file ``finish``."""
    (folder / "tfdp").mkdir(parents=True)
    (folder / "tfdp" / "__init__.py").touch()
    (folder / "tfdp" / f"{module}.py").write_text(STAND_IN)
    launch = ("python", "-m", "cluster.launch", "--workers=2", "--max_restarts=3", *flags)
    command = [*launch, "--", "python", "-m", f"tfdp.{module}"]
    return stack.enter_context(Process(command, cwd=folder, limit_s=LIMIT_S))


@pytest.fixture(scope="module")
def launchers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Process]]:
    """Several at once, so that there is one wait until spares are due."""
    folder = tmp_path_factory.mktemp("spares")
    with ExitStack() as stack:
        found = {
            name: start(stack, folder / name, module, *flags)
            for name, module, flags in (
                ("harmed", "train", ()),
                ("killed", "train", ()),
                ("finished", "train", ()),
                ("turned off", "train", ("--no-spares",)),
                ("unknown", "another", ()),
            )
        }
        for name in ("harmed", "killed", "finished"):
            wait_until(lambda name=name: len(spares_of(found[name])) == 2, LIMIT_S, "spares wait")
        yield found


def test_spares_take_the_places_of_workers(launchers: dict[str, Process]) -> None:
    launcher = launchers["harmed"]
    waiting = spares_of(launcher)
    first = dict(workers_in(launcher.output))
    assert not set(first.values()) & set(waiting.values())
    assert "said while it waits" not in launcher.output
    psutil.Process(first[1]).kill()
    wait_until(lambda: len(workers_in(launcher.output)) == 4, LIMIT_S, "two work again")
    assert dict(workers_in(launcher.output)[2:]) == waiting
    (Path(psutil.Process(launcher.pid).cwd()) / "finish").touch()
    output = launcher.wait()
    assert output.count("said while it waits") == 2
    assert output.count("ended with") == 0


def test_a_spare_that_died_is_done_without(launchers: dict[str, Process]) -> None:
    launcher = launchers["finished"]
    waiting = spares_of(launcher)
    psutil.Process(waiting[0]).kill()
    first = dict(workers_in(launcher.output))
    psutil.Process(first[0]).kill()
    wait_until(lambda: len(workers_in(launcher.output)) == 4, LIMIT_S, "two work again")
    again = dict(workers_in(launcher.output)[2:])
    assert again[1] == waiting[1]
    assert again[0] not in (waiting[0], first[0])
    # The place that it was for gets another; the run ends, and they end with it.
    wait_until(lambda: len(spares_of(launcher)) == 2, LIMIT_S, "spares wait again")
    left = [psutil.Process(pid) for pid in spares_of(launcher).values()]
    (Path(psutil.Process(launcher.pid).cwd()) / "finish").touch()
    launcher.wait()
    assert psutil.wait_procs(left, timeout=10)[1] == []


def test_spares_die_with_a_killed_launcher(launchers: dict[str, Process]) -> None:
    launcher = launchers["killed"]
    children = psutil.Process(launcher.pid).children()
    assert sum(map(is_spare, children)) == 2
    launcher.signal(signal.SIGKILL)
    launcher.wait(-signal.SIGKILL)
    assert psutil.wait_procs(children, timeout=10)[1] == []


@pytest.mark.parametrize("name", ["turned off", "unknown"])
def test_there_may_be_none(name: str, launchers: dict[str, Process]) -> None:
    launcher = launchers[name]
    assert len(workers_in(launcher.output)) == 2
    assert spares_of(launcher) == {}
    assert len(psutil.Process(launcher.pid).children()) == 3, "two workers and the watchdog"
