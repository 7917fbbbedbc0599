"""A cluster on this machine: ``python -m cluster.launch --workers=2 -- python -m tfdp.train …``.

Starts the command once for each worker, with a TF_CONFIG each, prints what they say, and starts all
of them anew when one is lost. ``cluster.policy`` says when, and what the exit codes mean;
``cluster.spares`` makes it quick. Nothing that it has started outlives it.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import select
import shutil
import signal
import socket
import sys
import time
from collections.abc import Sequence
from typing import IO

from cluster import exit_codes, policy, printer, spares, spec
from cluster.process import Worker
from cluster.signals import Signals
from cluster.spares import Spares
from cluster.watchdog import Watchdog


def main(argv: Sequence[str]) -> int:
    """Runs a command as the workers of a cluster, to their end; returns the exit code."""
    flags = _parse(argv)
    output = printer.Printer()
    with Signals() as signals, Watchdog() as watchdog:
        launcher = Launcher(flags, output, signals, watchdog)
        lasted_s: list[float] = []
        while True:
            began_s = time.monotonic()
            try:
                ends = launcher.run()
            except OSError as error:
                verdict = policy.Verdict(exit_codes.FAILED, f"can't run the command: {error}")
            else:
                lasted_s.append(time.monotonic() - began_s)
                verdict = policy.judge(
                    ends, told=launcher.told, lasted_s=lasted_s, max_restarts=flags.max_restarts
                )
            output.say(verdict.reason)
            if verdict.code is None and (told := launcher.pause(verdict.wait_s)) is not None:
                verdict = policy.stopped(told)
                output.say(verdict.reason)
            if verdict.code is not None:
                break
    output.flush()  # out here a signal ends the launcher, should nobody read its output
    return verdict.code


class Launcher:
    """Starts workers, watches and stops them; it decides nothing.

    Args:
        flags: as parsed.
        output: takes what workers print.
        signals: what the launcher is told.
        watchdog: told of every worker.
    """

    def __init__(
        self,
        flags: argparse.Namespace,
        output: printer.Printer,
        signals: Signals,
        watchdog: Watchdog,
    ) -> None:
        self._flags = flags
        self._output = output
        self._signals = signals
        self._guardian = watchdog
        self._told: list[signal.Signals] = []
        self._spares = Spares(range(flags.workers if flags.spares else 0), self._start_spare)

    @property
    def told(self) -> signal.Signals | None:
        """The signal that told the launcher to stop, if one did."""
        return self._told[0] if self._told else None

    def pause(self, wait_s: float) -> signal.Signals | None:
        """Waits between two starts; returns the signal that told the launcher to stop, if any."""
        until_s = time.monotonic() + wait_s
        while not self._told and time.monotonic() < until_s:
            self._wait(until_s)
        return self.told

    def run(self) -> list[policy.Exit]:
        """Runs the cluster once, until every worker is gone.

        Returns:
            How workers ended, in order of time, without those stopped because of another's end.
        """
        running: list[Worker] = []
        ends: list[policy.Exit] = []
        todo: list[tuple[float, signal.Signals]] = []  # when to send what to those still running
        why = ""
        heard = 0  # of self._told
        given_up = False  # on those still running: their exits are our doing
        try:
            self._start(running)
            while running:
                if len(self._told) > heard:
                    heard = len(self._told)
                    todo = _schedule(policy.on_signals(self._told, self._flags.stop_timeout_s))
                    why = f"got {self._told[-1].name}"
                if todo and time.monotonic() >= todo[0][0]:
                    _, number = todo.pop(0)
                    self._stop(running, number, why)
                    given_up |= not self._told
                due_s = None if why else self._spares.due_s
                if due_s is not None and time.monotonic() >= due_s:
                    self._spares.start()
                    due_s = None
                self._wait(until_s=todo[0][0] if todo else due_s)
                for worker, code in [(w, code) for w in running if (code := w.poll()) is not None]:
                    running.remove(worker)
                    self._output.finish(worker.stdout)
                    self._output.finish(worker.stderr)
                    if given_up:
                        continue
                    ends.append(policy.Exit(worker.name, code))
                    if code != exit_codes.FINISHED and not todo and not self._told:
                        todo = _schedule(policy.ON_FAILURE)
                        why = str(ends[-1])
        finally:
            for worker in running:
                worker.signal(signal.SIGKILL)
        return ends

    def _start(self, running: list[Worker]) -> None:
        ports = _free_ports(self._flags.workers)
        for place in range(len(ports)):
            cluster = spec.local(ports, place)
            config = cluster.tf_config()
            worker = self._spares.take(place, config)
            if worker is None:
                environ = _environ(TF_CONFIG=config)
                worker = Worker(cluster.name, self._flags.command, environ, self._guardian)
            running.append(worker)
            self._output.follow(worker.stdout, cluster.name, place, printer.STDOUT)
            self._output.follow(worker.stderr, cluster.name, place, printer.STDERR)
        self._spares.workers_started()

    def _start_spare(self, place: int) -> Worker:
        name = spec.local(range(1, self._flags.workers + 1), place).name
        environ = _environ(**{spares.VARIABLE: str(place)})
        return Worker(name, self._flags.command, environ, self._guardian, hears=True)

    def _stop(self, running: Sequence[Worker], number: signal.Signals, why: str) -> None:
        names = ", ".join(worker.name for worker in running)
        self._output.say(f"{why}: sending {number.name} to {names}")
        for worker in running:
            worker.signal(number)

    def _wait(self, until_s: float | None) -> None:
        """Copies output until there is news: a signal, a worker's end, or the time is up."""
        while True:
            left_s = None if until_s is None else max(0.0, until_s - time.monotonic())
            sources: list[Signals | IO[bytes]] = [self._signals, *self._output.sources]
            readable, writable, _ = select.select(sources, self._output.targets, [], left_s)
            for source in readable:
                if not isinstance(source, Signals):
                    self._output.read(source)
            if writable:
                self._output.write()
            if self._signals in readable:
                self._told += self._signals.receive()
                return
            if left_s == 0:
                return


def _environ(**more: str) -> dict[str, str]:
    # What a killed worker said last is worth seeing.
    return {"PYTHONUNBUFFERED": "1", **os.environ, **more}


def _schedule(plan: policy.Plan) -> list[tuple[float, signal.Signals]]:
    now_s = time.monotonic()
    return [(now_s + after_s, number) for after_s, number in plan]


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as held:  # together, so that all of them differ
        ports = []
        for _ in range(count):
            listener = held.enter_context(socket.socket())
            listener.bind(("", 0))  # free on every interface: TensorFlow listens on all
            ports.append(listener.getsockname()[1])
    return ports


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m cluster.launch",
        usage="%(prog)s [flags] -- command …",
        description="Runs a command as the workers of a cluster on this machine.",
        allow_abbrev=False,
    )
    parser.add_argument("--workers", type=int, default=1, help="how many to start (%(default)s)")
    parser.add_argument(
        "--max_restarts",
        type=int,
        default=0,
        help="how often an hour to start all of them anew after one was lost (%(default)s)",
    )
    parser.add_argument(
        "--stop_timeout_s",
        type=float,
        default=30.0,
        help="after SIGINT or SIGTERM, seconds for workers to save and leave (%(default)s)",
    )
    parser.add_argument(
        "--spares",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="for python -m tfdp.train with --max_restarts: keep a process for each worker that "
        "has imported TensorFlow, so that a start anew takes seconds less",
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
        parser.error("there is no command: put it after --, as in -- python -m tfdp.train …")
    if shutil.which(flags.command[0]) is None:
        parser.error(f"the command {flags.command[0]!r} is not there, or is not executable")
    flags.spares = flags.spares and flags.max_restarts > 0 and spares.can_wait(flags.command)
    return flags


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
