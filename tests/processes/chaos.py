"""Harms runs at random and compares their weights: ``python -m tests.processes.chaos --rounds=50``.

A round is one harm: a signal (KILL, STOP, TERM) to one worker of a run under the launcher, or to
all at once, while it starts, trains, saves, evaluates or exports. A seed determines signal, workers
and moment. After a few rounds, or as many as come before its end, a run goes on to its end. There
its weights have to equal those of an undisturbed run, bit for bit.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import random
import re
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import psutil

from cluster.launching import spares
from tests.processes.test_spares import is_spare
from tests.processes.test_train import command, finish, summary
from tests.running import Process

MOMENTS = ("start", "train", "save", "evaluate", "export")
SIGNALS = ("KILL", "STOP", "TERM")
ROUNDS_A_RUN = 4
WORKERS = 2
VICTIMS = (*((index,) for index in range(WORKERS)), tuple(range(WORKERS)))
LIMIT_S = 90  # for each step of a round


@dataclasses.dataclass(frozen=True)
class Harm:
    """One harm: ``signal`` to the workers ``victims``, ``delay_s`` after ``moment``."""

    moment: str
    signal: str
    victims: tuple[int, ...]
    delay_s: float


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What followed a harm.

    Args:
        harm: the harm.
        noticed_s: seconds until a worker had ended, other than a single victim; None if none did.
        resumed_s: seconds until the run went on; None if it had ended.
        reason: the launcher's message.
        message: another worker's message, if any.
    """

    harm: Harm
    noticed_s: float | None
    resumed_s: float | None
    reason: str
    message: str


def draw(rng: random.Random, rounds: int) -> Iterator[list[Harm]]:
    """Yields the harms of each run, ``rounds`` in all."""
    while rounds > 0:
        # Export is the end of a run: it comes last, in at least every second run.
        last = rng.choice((rng.choice(MOMENTS), "export"))
        moments = [*rng.choices(MOMENTS[:-1], k=ROUNDS_A_RUN - 1), last]
        moments = moments[:rounds]
        rounds -= len(moments)
        yield [
            Harm(
                moment,
                rng.choice(SIGNALS),
                rng.choice(VICTIMS),
                rng.uniform(0, 6 if moment == "start" else 0.3),
            )
            for moment in moments
        ]


def harm_a_run(workdir: Path, harms: Sequence[Harm], report: Callable[[Outcome], None]) -> None:
    """Starts a run, does all of ``harms`` to it, and waits for its end."""
    marks = workdir.with_name(f"{workdir.name}-marks")
    marks.mkdir(parents=True)
    flags = ("--eval_every_steps=6", "--startup_timeout_s=12")
    launch = ["python", "-m", "cluster.launch", f"--workers={WORKERS}", "--max_restarts=99", "--"]
    env = {"MARKS": str(marks), "PACE_S": "0.05"}
    limit_s = LIMIT_S * (1 + len(harms))
    with Process([*launch, *command(workdir, *flags)], env=env, limit_s=limit_s) as launcher:
        for harm in harms:
            if not _reach(harm, launcher, workdir, marks):
                break
            report(_harm(harm, launcher))
        launcher.wait(0)


def _reach(harm: Harm, launcher: Process, workdir: Path, marks: Path) -> bool:
    """Waits for the moment; returns whether it came before the run's end."""
    for mark in marks.iterdir():
        mark.unlink()

    def is_reached() -> bool:
        if harm.moment == "start":
            return len(_workers(launcher)) == WORKERS
        if harm.moment == "save":
            return any((workdir / "checkpoints").glob(".*"))  # not complete yet
        if harm.moment == "export":
            return any((workdir / "model").glob(".*"))
        return (marks / ("eval" if harm.moment == "evaluate" else "train")).exists()

    if not _wait(launcher, is_reached):
        return False
    time.sleep(harm.delay_s)
    return launcher.popen.poll() is None


def _harm(harm: Harm, launcher: Process) -> Outcome:
    workers = _workers(launcher)
    before = len(launcher.output)
    began_s = time.monotonic()
    for victim in harm.victims:
        with contextlib.suppress(psutil.NoSuchProcess, KeyError):
            workers[victim].send_signal(getattr(signal, f"SIG{harm.signal}"))
    # With all workers harmed, nobody is left to notice but the launcher, which ends the first.
    others = [worker for index, worker in workers.items() if {index} != {*harm.victims}]
    noticed = _wait(launcher, lambda: any(not _is_alive(other) for other in others))
    noticed_s = time.monotonic() - began_s if noticed else None
    restart = r"\[launch\] (.*: starting again.*)"
    _wait(launcher, lambda: re.search(restart, launcher.output[before:]) is not None)
    match = re.search(restart, launcher.output[before:])
    goes_on = r"starting again.*(?s:.*)tfdp: (step|finished|.* is finished)"
    resumed = _wait(launcher, lambda: re.search(goes_on, launcher.output[before:]) is not None)
    resumed_s = time.monotonic() - began_s if resumed else None
    output = launcher.output[before:]
    reason = match[1] if match else "the run was over"
    endings = r"was lost|got a signal|got SIG\w+ and ends|failed|waited"
    message = re.search(rf"tfdp: (.*(?:{endings}).*)", output)
    return Outcome(harm, noticed_s, resumed_s, reason, message[1] if message else "")


def _wait(launcher: Process, condition: Callable[[], bool]) -> bool:
    """Returns whether ``condition`` became true before the launcher ended."""
    deadline_s = time.monotonic() + LIMIT_S
    while not condition():
        if launcher.popen.poll() is not None:
            return condition()
        if time.monotonic() > deadline_s:
            raise AssertionError(f"nothing happened for {LIMIT_S} s:\n{launcher.tail()}")
        time.sleep(0.01)
    return True


def _workers(launcher: Process) -> dict[int, psutil.Process]:
    """Returns the launcher's workers by index, those that were spares included."""
    workers = {}
    with contextlib.suppress(psutil.NoSuchProcess):
        for process in psutil.Process(launcher.pid).children():
            with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied, OSError):
                environ = process.environ()  # as it was at the start
                if spares.VARIABLE in environ:
                    index = None if is_spare(process) else int(environ[spares.VARIABLE])
                else:
                    config = json.loads(environ.get("TF_CONFIG", "{}"))
                    index = config["task"]["index"] if config else None
                if index is not None and process.status() != psutil.STATUS_ZOMBIE:
                    workers[index] = process
    return workers


def _is_alive(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def main(argv: Sequence[str]) -> int:
    """Harms runs, prints a table, and returns 0 if every run ended with the same weights."""
    parser = argparse.ArgumentParser(prog="python -m tests.processes.chaos")
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    flags = parser.parse_args(argv)
    print(f"seed {flags.seed}")
    rng = random.Random(flags.seed)
    rounds = 0

    def report(outcome: Outcome) -> None:
        nonlocal rounds
        rounds += 1
        harm = outcome.harm
        times = [
            "-".rjust(7) if time_s is None else f"{time_s:7.1f}"
            for time_s in (outcome.noticed_s, outcome.resumed_s)
        ]
        victims = "+".join(map(str, harm.victims))
        row = f"{rounds:5}  {harm.moment:8}  {harm.signal:4}  {victims:>7}"
        print(
            f"{row}  {times[0]}  {times[1]}  {outcome.message[:90] or outcome.reason}", flush=True
        )

    with tempfile.TemporaryDirectory(prefix="tfdp-chaos-") as folder:
        finish(Path(folder) / "undisturbed")
        expected = summary(Path(folder) / "undisturbed")["weights_sha256"]
        print("round  moment    sent  workers  noticed  resumed  message of another worker")
        print("                                   (s)      (s)")
        for number, harms in enumerate(draw(rng, flags.rounds), start=1):
            workdir = Path(folder) / str(number)
            harm_a_run(workdir, harms, report)
            got = summary(workdir)["weights_sha256"]
            print(f"run {number} ended with {got[:12]}, undisturbed {expected[:12]}", flush=True)
            if got != expected:
                print(f"seed {flags.seed}: run {number} ended with other weights", file=sys.stderr)
                return 1
    return 0


if __name__ == "__main__":
    os.chdir(Path(__file__).resolve().parents[2])
    sys.exit(main(sys.argv[1:]))
