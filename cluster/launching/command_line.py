"""Parses the command lines of launchers: flags, ``--``, and the workers' command."""

from __future__ import annotations

import argparse
from collections.abc import Sequence


def parse(parser: argparse.ArgumentParser, argv: Sequence[str]) -> argparse.Namespace:
    """Parses flags, ``--``, and the command after it, which becomes ``command``.

    Ends the process with 2 if the command is missing, or ``--max_restarts`` or ``--stop_timeout_s``
    is out of range.

    Args:
        parser: knows ``--max_restarts``, and ``--stop_timeout_s`` if there is one.
        argv: the command line, without the program's name.
    """
    split = argv.index("--") if "--" in argv else len(argv)
    if split == len(argv) and any(not word.startswith("-") for word in argv):
        parser.error("there is no -- before the command: write -- python -m tfdp.train …")
    flags = parser.parse_args(argv[:split])
    flags.command = list(argv[split + 1 :])
    if flags.max_restarts < 0:
        parser.error(f"--max_restarts is {flags.max_restarts}: it has to be 0 or more")
    stop_timeout_s = getattr(flags, "stop_timeout_s", 0.0)
    if not 0 <= stop_timeout_s < float("inf"):
        parser.error(f"--stop_timeout_s is {stop_timeout_s}: it has to be 0 or more")
    if not flags.command:
        parser.error("the command is missing: put it after --, as in -- python -m tfdp.train …")
    return flags
