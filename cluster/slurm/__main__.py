"""Keeps the workers of a Slurm job alive: ``python -m cluster.slurm -- python -m tfdp.train …``.

For batch scripts and salloc. Starts the command with srun, once for each task of the job, and
starts all of them again when one is lost. At the job's time limit, or when a node has died, it puts
the job back into the queue. ``cluster.policy`` decides when, and with which exit code this ends.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import sys
from collections.abc import Sequence

from cluster.launching import command_line
from cluster.launching.signals import Signals
from cluster.slurm.job import Job
from cluster.slurm.runner import SlurmRunner


def main(argv: Sequence[str]) -> int:
    """Runs a command as the tasks of a Slurm job; returns the exit code."""
    flags = _parse(argv)
    with Signals() as signals:
        return SlurmRunner(
            flags.command,
            job=Job(),
            srun_flags=flags.srun_flags,
            max_restarts=flags.max_restarts,
            min_workers=flags.min_workers,
            is_one_of_several=flags.one_of_several,
            signals=signals,
        ).run()


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m cluster.slurm",
        usage="%(prog)s [flags] -- command …",
        description="Runs a command as the tasks of the Slurm job in which this is called.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--max_restarts",
        type=int,
        default=3,
        help="how often per hour all workers are started again in this job after one was lost "
        "(%(default)s)",
    )
    parser.add_argument(
        "--min_workers",
        type=int,
        help="with sbatch --no-kill: go on without nodes that died, if so many workers are left; "
        "by default, the job is put back into the queue",
    )
    parser.add_argument(
        "--one_of_several",
        action="store_true",
        help="this is one of several in the job: start the workers once, and never put the job "
        "back into the queue; what is worth another try ends with 138",
    )
    parser.add_argument(
        "--srun_flags",
        action="append",
        default=[],
        help="more flags for srun, as in --srun_flags='--label --cpu-bind=none'; may be repeated",
    )
    flags = command_line.parse(parser, argv)
    flags.max_restarts = 0 if flags.one_of_several else flags.max_restarts
    flags.srun_flags = [word for text in flags.srun_flags for word in shlex.split(text)]
    if flags.min_workers is not None and flags.min_workers < 1:
        parser.error(f"--min_workers is {flags.min_workers}: it has to be 1 or more")
    if "SLURM_JOB_ID" not in os.environ:
        parser.error("SLURM_JOB_ID is not set: call this in a batch script (sbatch) or in salloc")
    if (tasks := os.environ.get("SLURM_STEP_NUM_TASKS", "1")) != "1":
        parser.error(f"this is one of {tasks} tasks of srun: call this without srun, it starts it")
    if shutil.which("srun") is None:
        parser.error("srun does not exist here: call this where Slurm's commands are installed")
    return flags


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
