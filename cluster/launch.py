"""A cluster on this machine: ``python -m cluster.launch --workers=2 -- python -m tfdp.train …``.

Or on several, by ssh: ``python -m cluster.launch --hosts=h1:2,h2:2 -- python -m tfdp.train …``.

Starts the command once for each worker, with a TF_CONFIG each, prints the workers' output, and
starts all of them again when one is lost. ``cluster.policy`` decides when, and with which exit code
the launcher ends. No process that the launcher has started outlives it.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from cluster.hosts import hostlist, variables
from cluster.hosts.host import Job
from cluster.hosts.hosts import Hosts
from cluster.launching import command_line, spares
from cluster.launching.launcher import Launcher
from cluster.launching.machines import Machines, ThisMachine
from cluster.launching.printer import Printer
from cluster.launching.signals import Signals
from cluster.launching.watchdog import Watchdog


def main(argv: Sequence[str]) -> int:
    """Runs a command as the workers of a cluster; returns the exit code."""
    flags = _parse(argv)
    printer = Printer()
    with Signals() as signals, contextlib.ExitStack() as stack:
        machines: Machines
        if flags.hosts:
            job = Job(flags.command, str(Path.cwd()), flags.environ)
            limits = {"min_workers": flags.min_workers, "ssh_config": flags.ssh_config}
            machines = stack.enter_context(Hosts(flags.hosts, job, log=printer.log, **limits))
        else:
            watchdog = stack.enter_context(Watchdog())
            machines = ThisMachine(flags.command, flags.workers, watchdog)
        launcher = Launcher(
            machines,
            max_restarts=flags.max_restarts,
            stop_timeout_s=flags.stop_timeout_s,
            has_spares=flags.spares,
            printer=printer,
            signals=signals,
        )
        exit_code = launcher.run()
    printer.flush()  # outside of the block: if nobody reads the output, a signal ends the launcher
    return exit_code


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m cluster.launch",
        usage="%(prog)s [flags] -- command …",
        description="Runs a command as the workers of a cluster, on this machine or on others.",
        allow_abbrev=False,
    )
    parser.add_argument("--workers", type=int, help="number of workers on this machine (1)")
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
    _add_flags_for_hosts(parser)
    flags = command_line.parse(parser, argv)
    if flags.workers is not None and (flags.hosts or flags.hostfile):
        parser.error("--workers is for this machine: give each host its number, as in h1:2")
    flags.workers = 1 if flags.workers is None else flags.workers
    if flags.workers < 1:
        parser.error(f"--workers is {flags.workers}: it has to be 1 or more")
    _read_flags_for_hosts(parser, flags)
    if not flags.hosts and shutil.which(flags.command[0]) is None:
        parser.error(f"the command {flags.command[0]!r} does not exist, or is not executable")
    flags.spares &= flags.max_restarts > 0 and spares.are_supported_by(flags.command)
    return flags


def _add_flags_for_hosts(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("workers on other hosts, started by ssh")
    group.add_argument("--hosts", help="names with numbers of workers, as in h1:2,h2:2")
    group.add_argument("--hostfile", help="file with a line for each host, as in h1 slots=2")
    group.add_argument(
        "--min_workers",
        type=int,
        help="start without hosts that can't be reached if so many workers are left (all)",
    )
    group.add_argument(
        "--env",
        action="append",
        default=[],
        metavar="NAME",
        help="a variable that workers get besides PATH, PYTHON*, TF_* and others; repeatable",
    )
    group.add_argument("--ssh_config", help="file that ssh reads in place of ~/.ssh/config")


def _read_flags_for_hosts(parser: argparse.ArgumentParser, flags: argparse.Namespace) -> None:
    """Replaces ``hosts`` by a list, empty without hosts; adds ``environ``."""
    if flags.hosts is not None and flags.hostfile is not None:
        parser.error("--hosts and --hostfile are both given: keep one of them")
    try:
        if flags.hostfile is not None:
            text = Path(flags.hostfile).read_text()
            flags.hosts = hostlist.from_file(flags.hostfile, text)
        else:
            flags.hosts = [] if flags.hosts is None else hostlist.from_flag(flags.hosts)
        flags.environ = variables.passed_on(os.environ, flags.env)
    except (OSError, UnicodeDecodeError) as error:
        parser.error(f"--hostfile={flags.hostfile} can't be read: {error}")
    except hostlist.HostListError as error:
        parser.error(str(error))
    except KeyError as error:
        parser.error(f"--env={error.args[0]}: there is no such variable, set it or drop the flag")
    for name in ("min_workers", "env", "ssh_config"):
        if not flags.hosts and getattr(flags, name):
            parser.error(f"--{name} is for workers on other hosts: add --hosts or --hostfile")
    if flags.ssh_config is not None and not Path(flags.ssh_config).is_file():
        parser.error(f"--ssh_config={flags.ssh_config}: there is no such file")
    workers = sum(host.workers for host in flags.hosts)
    if flags.min_workers is not None and not 1 <= flags.min_workers <= workers:
        parser.error(f"--min_workers is {flags.min_workers}: it has to be from 1 to {workers}")
    if flags.hosts and shutil.which("ssh") is None:
        parser.error("there is no ssh here: install OpenSSH's client, or use --workers")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
