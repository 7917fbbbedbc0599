"""Takes workers away at random, and lets them come back.

Start it as ``python -m tests.processes.chaos_elastic --rounds=10``.

Three workers run with ``--min_workers=2``, each kept by itself as a pod is. A round takes one of
them away (SIGKILL), waits until the others have saved without it or only for a moment, and lets it
come back. Rounds follow each other until the run ends; then the next run starts. The weights of
each run have to equal those of one process within rounding.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from tests.processes.pods import Pods
from tests.processes.test_elastic import ENV, FLAGS, assert_same_weights, newest_step
from tests.processes.test_train import STEPS, command, summary
from tests.processes.workers import places
from tests.running import run

WORKERS = 3
PACE_S = 0.3  # of a batch
LIMIT_S = 600


def harm_a_run(workdir: Path, rng: random.Random, rounds: int) -> int:
    """Runs once to the end; returns how many rounds came before that, at most ``rounds``."""
    flags = (*FLAGS, "--min_workers=2", "--elastic_wait_s=3", "--checkpoint_every_steps=2")
    environments = [{**ENV, **each, "PACE_S": str(PACE_S)} for each in places(WORKERS)]
    done = 0
    with Pods(command(workdir, *flags), environments, limit_s=LIMIT_S) as pods:
        pods.start(*range(WORKERS))
        pods.wait_until(lambda: newest_step(workdir) > 0, "the run has saved")
        while done < rounds and newest_step(workdir) < STEPS - 8:
            victim, before = rng.randrange(WORKERS), newest_step(workdir)
            until = min(before + rng.choice((0, 0, 4)), STEPS)
            started_s = time.monotonic()
            pods.take_away(victim)
            pods.wait_until(lambda step=until: newest_step(workdir) >= step, "the others save")
            time.sleep(rng.uniform(0, 2))
            away_s = time.monotonic() - started_s
            pods.start(victim)
            pods.wait_until(lambda: newest_step(workdir) > before, "the run goes on")  # noqa: B023
            done += 1
            print(f"{victim:6}  {before:4}  {newest_step(workdir):5}  {away_s:8.1f}", flush=True)
        pods.wait()
    return done


def main(argv: Sequence[str]) -> int:
    """Harms runs, prints a table, and returns 0 if every run ended with the weights of one."""
    parser = argparse.ArgumentParser(prog="python -m tests.processes.chaos_elastic")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    flags = parser.parse_args(argv)
    print(f"seed {flags.seed}")
    rng = random.Random(flags.seed)
    rounds = 0
    with tempfile.TemporaryDirectory(prefix="tfdp-chaos-") as folder:
        alone = Path(folder) / "alone"
        run(["python", *command(alone, *FLAGS)[1:]], env=ENV)
        print("victim  step  until  away (s)")
        while rounds < flags.rounds:
            workdir = Path(folder) / str(rounds)
            rounds += max(1, harm_a_run(workdir, rng, flags.rounds - rounds))
            assert_same_weights(workdir, alone)
            workers = summary(workdir)["workers"]
            print(f"ended with the weights of one process, on {workers} workers", flush=True)
    return 0


if __name__ == "__main__":
    os.chdir(Path(__file__).resolve().parents[2])
    sys.exit(main(sys.argv[1:]))
