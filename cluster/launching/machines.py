"""Where workers run: what the launcher needs of machines, and this machine as one of them."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from collections.abc import Mapping, Sequence
from typing import IO, Protocol

from cluster import devices, policy
from cluster.launching.printer import Source
from cluster.launching.process import WorkerProcess
from cluster.launching.watchdog import Watchdog


class Worker(Protocol):
    """A running worker, or a spare for one: here (``WorkerProcess``) or on another host."""

    name: str

    @property
    def loss(self) -> str:
        """What is known about its end beyond the exit code, as in ``policy.Exit``."""

    @property
    def stdout(self) -> Source:
        """Its standard output."""

    @property
    def stderr(self) -> Source:
        """Its standard error."""

    def write_line(self, line: str) -> bool:
        """Writes a line to its standard input and closes it; returns False if it has ended."""

    def poll(self) -> int | None:
        """Returns the exit code, or minus the signal that killed it; None while it runs."""

    def sample(self) -> policy.Sample | None:
        """Returns what the kernel reports about the process; None if nothing new has arrived."""

    def signal(self, number: signal.Signals) -> None:
        """Sends a signal to the process alone, but SIGKILL to its whole process group."""


class Machines(Protocol):
    """Machines with slots, each for one worker."""

    @property
    def slots(self) -> Sequence[int]:
        """Numbers of all slots, usable or not."""

    @property
    def sources(self) -> Sequence[IO[bytes]]:
        """Streams to pass to ``tend`` when they are readable."""

    @property
    def targets(self) -> Sequence[IO[bytes]]:
        """Streams to pass to ``tend`` when they are writable."""

    @property
    def tend_every_s(self) -> float | None:
        """How often to call ``tend``, even if no stream is ready; None for never."""

    def tend(self, ready: Sequence[object]) -> bool:
        """Serves connections; returns whether a worker or a machine has changed its state."""

    def begin(self) -> None:
        """Begins to find out which slots can be used for the next start.

        Raises:
            OSError: if that is not possible.
        """

    def poll(self) -> Mapping[int, str] | None:
        """Returns the address of each slot that can be used; None while that is not known.

        Raises:
            policy.CantStart: if there are too few.
        """

    def start(
        self, slot: int, name: str, environ: Mapping[str, str], *, has_input: bool = False
    ) -> Worker:
        """Starts the worker of a slot, or a spare for it.

        Args:
            slot: its number.
            name: the worker's name, for people.
            environ: variables on top of those that all workers get.
            has_input: whether standard input is a pipe, for ``write_line``; by default it is empty.

        Raises:
            OSError: if the process can't be started.
        """


class ThisMachine:
    """This machine, for as many workers as wanted.

    Args:
        command: the program that every worker runs, and its arguments.
        workers: number of workers.
        watchdog: kills the workers if the launcher dies.
    """

    sources: Sequence[IO[bytes]] = ()
    targets: Sequence[IO[bytes]] = ()
    tend_every_s = None

    def __init__(self, command: Sequence[str], workers: int, watchdog: Watchdog) -> None:
        self.slots = range(workers)
        self._command = command
        self._watchdog = watchdog

    def tend(self, ready: Sequence[object]) -> bool:
        """Returns False: the end of a child wakes the launcher by a signal."""
        return False

    def begin(self) -> None:
        """Does nothing."""

    def poll(self) -> dict[int, str]:
        """Returns an address of the loopback interface for each slot."""
        ports = zip(self.slots, _free_ports(len(self.slots)), strict=True)
        return {slot: f"127.0.0.1:{port}" for slot, port in ports}

    def start(
        self, slot: int, name: str, environ: Mapping[str, str], *, has_input: bool = False
    ) -> WorkerProcess:
        """Starts the worker of a slot, or a spare for it; see ``Machines``."""
        # Unbuffered, so that the last lines of a killed worker are printed too.
        own_gpus = devices.of_worker(os.environ, slot, len(self.slots))
        full = {"PYTHONUNBUFFERED": "1", **os.environ, **own_gpus, **environ}
        return WorkerProcess(name, self._command, full, self._watchdog, has_input=has_input)


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:  # all are open at once, so that they differ
        ports = []
        for _ in range(count):
            listener = stack.enter_context(socket.socket())
            listener.bind(("", 0))  # free on every interface: TensorFlow listens on all
            ports.append(listener.getsockname()[1])
    return ports
