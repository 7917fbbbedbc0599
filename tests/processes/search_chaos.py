"""Kills a search again and again, and compares it with an undisturbed one.

``python -m tests.processes.search_chaos --trials=30 --kills=10`` searches on the digits recipe.
A kill is SIGKILL to the coordinator, to a trial's process, or to all at once, at a random moment.
At the end, ``search.json`` and ``trials.csv`` have to be those of the undisturbed search.
"""

from __future__ import annotations

import argparse
import contextlib
import random
import signal
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import psutil

from tests.running import Process, run, wait_until

FILES = ("search.json", "trials.csv")
LIMIT_S = 1800
SPACE = ("learning_rate=1e-4..1e-1:log", "dropout=0.0..0.6")


def command(recipe: str, workdir: Path, *flags: str, of_trials: Sequence[str]) -> list[str]:
    """The command of a search."""
    own = [f"--recipe={recipe}", f"--workdir={workdir}", "--objective=accuracy:max", *flags]
    return ["python", "-m", "tfdp.tune", *own, "--", *of_trials]


def trials_of(coordinator: int) -> list[psutil.Process]:
    """The processes of trials that a coordinator has started."""
    with contextlib.suppress(psutil.NoSuchProcess):
        children = psutil.Process(coordinator).children()
        return [each for each in children if "tfdp.train" in _words(each)]
    return []


def _words(process: psutil.Process) -> list[str]:
    with contextlib.suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
        return list(process.cmdline())
    return []


def run_killed(
    words: Sequence[str], kills: Sequence[str], rng: random.Random, within_s: float
) -> list[str]:
    """Runs a search to its end, killing as told; returns what was killed, in words.

    Args:
        words: the command.
        kills: of each kill, who: ``coordinator``, ``trial`` or ``all``.
        rng: chooses the trial and the moment.
        within_s: the longest time from a trial's start to the kill, in seconds.
    """
    left, done = list(kills), []
    while True:
        with Process(words, limit_s=LIMIT_S) as search:
            while left:
                wait_until(
                    lambda: trials_of(search.pid) or search.popen.poll() is not None,
                    LIMIT_S,
                    "a trial runs",
                )
                time.sleep(rng.uniform(0, within_s))  # the moment is random, nothing waits for it
                running = trials_of(search.pid)
                if search.popen.poll() is not None:
                    raise AssertionError(f"it ended before {left}:\n{search.tail()}")
                if not running:
                    continue
                who = left.pop(0)
                numbers = sorted(_number(each) for each in running)
                done.append(f"{who} while trials {numbers} ran")
                if who == "trial":
                    with contextlib.suppress(psutil.NoSuchProcess):
                        rng.choice(running).send_signal(signal.SIGKILL)
                    continue
                if who == "all":  # as if the machine had failed
                    for each in running:
                        with contextlib.suppress(psutil.NoSuchProcess):
                            each.send_signal(signal.SIGKILL)
                search.signal(signal.SIGKILL)
                search.wait(-signal.SIGKILL)
                break
            else:
                search.wait()
                return done


def _number(process: psutil.Process) -> str:
    workdirs = [word for word in _words(process) if word.startswith("--workdir=")]
    return Path(workdirs[0]).name if workdirs else "?"


def assert_alike(one: Path, other: Path) -> None:
    """Whether two searches have the same results."""
    for name in FILES:
        assert (one / name).read_bytes() == (other / name).read_bytes(), name


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=30)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    flags = parser.parse_args()
    rng = random.Random(flags.seed)
    own = [f"--trials={flags.trials}", "--prune=asha", *(f"--search={each}" for each in SPACE)]
    of_trials = ["--epochs=3", "--checkpoint_every_steps=20"]
    with tempfile.TemporaryDirectory() as folder:
        undisturbed, killed = Path(folder, "undisturbed"), Path(folder, "killed")
        options = {"of_trials": of_trials}
        recipe = "tfdp.recipes.digits"
        print(run(command(recipe, undisturbed, *own, "--parallel=1", **options), limit_s=LIMIT_S))
        kills = [rng.choice(("coordinator", "trial", "all")) for _ in range(flags.kills)]
        words = command(recipe, killed, *own, "--parallel=2", **options)
        for line in run_killed(words, kills, rng, within_s=12.0):
            print("killed:", line)
        assert_alike(undisturbed, killed)
        print((killed / "trials.csv").read_text())
        print(f"{len(kills)} kills, and the same {' and '.join(FILES)}")


if __name__ == "__main__":
    main()
