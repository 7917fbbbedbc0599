"""The hosts of a run, as one set of machines for the launcher."""

from __future__ import annotations

import ipaddress
import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from typing import IO, Final

from cluster import devices, exit_codes, policy
from cluster.hosts import keeper
from cluster.hosts.agreement import differences
from cluster.hosts.connection import keeper_command
from cluster.hosts.host import Job, RemoteHost
from cluster.hosts.hostlist import Host
from cluster.hosts.worker import RemoteWorker

CLOSE_S: Final = 5.0  # for connections to end by themselves


class Hosts:
    """Machines that ssh can reach, each with a slot for each of its workers.

    A context manager: at its end, the keepers kill what is left of workers and spares.

    Args:
        hosts: their names and numbers of workers.
        job: what the workers run.
        min_workers: how many workers are enough for a start; None for all.
        ssh_config: file to read in place of the user's ssh_config, if any.
        log: prints a line for people.
    """

    def __init__(
        self,
        hosts: Sequence[Host],
        job: Job,
        *,
        min_workers: int | None,
        ssh_config: str | None,
        log: Callable[[str], None],
    ) -> None:
        ends = list(itertools.accumulate(host.workers for host in hosts))
        self.slots = range(ends[-1])
        self._hosts = [
            RemoteHost(
                host.name,
                range(end - host.workers, end),
                job,
                keeper_command(host.name, ssh_config),
            )
            for host, end in zip(hosts, ends, strict=True)
        ]
        self._host_of = {slot: host for host in self._hosts for slot in host.slots}
        self._min_workers = len(self.slots) if min_workers is None else min_workers
        self._log = log
        self._environ = job.environ

    @property
    def sources(self) -> list[IO[bytes]]:
        """Streams to pass to ``tend`` when they are readable."""
        return [
            source
            for host in self._hosts
            if host.connection is not None
            for source in host.connection.sources
        ]

    @property
    def targets(self) -> list[IO[bytes]]:
        """Streams to pass to ``tend`` when they are writable."""
        return [
            target
            for host in self._hosts
            if host.connection is not None
            for target in host.connection.targets
        ]

    @property
    def tend_every_s(self) -> float | None:
        """How often to call ``tend``, even if no stream is ready."""
        return keeper.BEAT_EVERY_S / 2

    def tend(self, ready: Sequence[object]) -> bool:
        """Serves the connections; returns whether a worker or a host has changed its state."""
        return any([host.tend(ready) for host in self._hosts])  # all of them

    def begin(self) -> None:
        """Begins to find out which hosts can be used for the next start.

        Raises:
            OSError: if ssh can't be started.
        """
        for host in self._hosts:
            host.begin()

    def poll(self) -> dict[int, str] | None:
        """Returns the address of each slot that can be used; None while that is not known.

        Raises:
            policy.CantStart: if too few hosts can be used, or they differ.
        """
        if not all(host.is_settled for host in self._hosts):
            return None
        usable = [host for host in self._hosts if host.is_ready]
        problems = [host.problem for host in self._hosts if host.problem is not None]
        workers = sum(len(host.slots) for host in usable)
        if workers < self._min_workers or any(problem.is_permanent for problem in problems):
            raise policy.CantStart(problems)
        if difference := differences({host.name: host.facts for host in usable}):
            raise policy.CantStart([policy.Exit("hosts", exit_codes.BAD_INPUT, difference)])
        if error := _wrong_address(usable):
            raise policy.CantStart([error])
        for problem in problems:
            self._log(f"{problem}: going on with {workers} of {len(self.slots)} workers")
        self._log_places(usable)
        return {
            slot: _host_and_port(host.address, port)
            for host in usable
            for slot, port in zip(host.slots, host.ports, strict=True)
        }

    def start(
        self, slot: int, name: str, environ: Mapping[str, str], *, has_input: bool = False
    ) -> RemoteWorker:
        """Starts the worker of a slot, or a spare for it.

        Args:
            slot: its number.
            name: the worker's name, for people.
            environ: variables on top of the job's.
            has_input: whether standard input is a pipe; by default it is empty.
        """
        host = self._host_of[slot]
        own_gpus = devices.of_worker(self._environ, host.slots.index(slot), len(host.slots))
        return host.start(name, {**own_gpus, **environ}, has_input=has_input)

    def _log_places(self, hosts: Sequence[RemoteHost]) -> None:
        first = 0
        places = []
        for host in hosts:
            numbers = range(first, first + len(host.slots))
            names = f"worker {', '.join(map(str, numbers))}"
            places.append(f"{names} on {host.name} ({host.address})")
            first = numbers.stop
        self._log("; ".join(places))

    def __enter__(self) -> Hosts:
        return self

    def __exit__(self, *_: object) -> None:
        connections = [host.connection for host in self._hosts if host.connection is not None]
        for connection in connections:
            connection.close()
        until_s = time.monotonic() + CLOSE_S
        for connection in connections:
            connection.wait(until_s)


def _host_and_port(address: str, port: int) -> str:
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def _wrong_address(hosts: Sequence[RemoteHost]) -> policy.Exit | None:
    """Returns an error if workers could not reach each other at the hosts' addresses."""
    names: dict[str, str] = {}
    for host in hosts if len(hosts) > 1 else ():
        loss = ""
        if ipaddress.ip_address(host.address).is_loopback:
            loss = f"was reached at {host.address}, where others can't reach it: use another name"
        elif host.address in names:
            loss = f"is {names[host.address]} as well ({host.address}): list it once"
        if loss:
            return policy.Exit(f"host {host.name}", exit_codes.BAD_INPUT, loss)
        names[host.address] = host.name
    return None
