"""A cluster on this machine: ``python -m cluster.launch --workers=2 -- python -m tfdp.train …``.

Starts the command once for each worker, with a TF_CONFIG each, prints the workers' output, and
starts all of them again when one is lost. ``cluster.policy`` decides when, and with which exit code
the launcher ends. No process that the launcher has started outlives it.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Sequence

from cluster.launching import spares
from cluster.launching.launcher import Launcher
from cluster.launching.printer import Printer
from cluster.launching.signals import Signals
from cluster.launching.watchdog import Watchdog


def main(argv: Sequence[str]) -> int:
    """Runs a command as the workers of a cluster; returns the exit code."""
    flags = _parse(argv)
    printer = Printer()
    with Signals() as signals, Watchdog() as watchdog:
        launcher = Launcher(
            flags.command,
            workers=flags.workers,
            max_restarts=flags.max_restarts,
            stop_timeout_s=flags.stop_timeout_s,
            has_spares=flags.spares,
            printer=printer,
            signals=signals,
            watchdog=watchdog,
        )
        exit_code = launcher.run()
    printer.flush()  # outside of the block: if nobody reads the output, a signal ends the launcher
    return exit_code


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m cluster.launch",
        usage="%(prog)s [flags] -- command …",
        description="Runs a command as the workers of a cluster on this machine.",
        allow_abbrev=False,
    )
    parser.add_argument("--workers", type=int, default=1, help="number of workers (%(default)s)")
    parser.add_argument(
        "--max_restarts",
        type=int,
        default=0,
        help="how often per hour all workers are started again after one was lost (%(default)s)",
    )
    parser.add_argument(
        "--stop_timeout_s",
        type=float,
        default=30.0,
        help="seconds that workers have to save and end after SIGINT or SIGTERM (%(default)s)",
    )
    parser.add_argument(
        "--spares",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="for python -m tfdp.train with --max_restarts: keep one more process per worker, "
        "which has imported TensorFlow, so that a restart takes seconds less",
    )
    split = argv.index("--") if "--" in argv else len(argv)
    flags = parser.parse_args(argv[:split])
    flags.command = list(argv[split + 1 :])
    if flags.workers < 1:
        parser.error(f"--workers is {flags.workers}: it has to be 1 or more")
    if flags.max_restarts < 0:
        parser.error(f"--max_restarts is {flags.max_restarts}: it has to be 0 or more")
    if not 0 <= flags.stop_timeout_s < float("inf"):
        parser.error(f"--stop_timeout_s is {flags.stop_timeout_s}: it has to be 0 or more")
    if not flags.command:
        parser.error("the command is missing: put it after --, as in -- python -m tfdp.train …")
    if shutil.which(flags.command[0]) is None:
        parser.error(f"the command {flags.command[0]!r} does not exist, or is not executable")
    flags.spares &= flags.max_restarts > 0 and spares.are_supported_by(flags.command)
    return flags


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
