"""Lets a part of the workers train, while others are away.

With ``min_workers``, a group does not need all of its workers: those that are there after a while
meet without the others. The lowest rank among them is the chief. As the usual chief may be away,
workers find each other by a folder that all of them share (of the workdir, which a changing chief
needs anyway): each writes its address there. A worker joins the lowest rank that lets it, and lets
higher ranks join it as long as no lower one answers.

Two parts of a cut network never train both. The first time of all, more than half of the workers
have to be there. From then on, the group trains whose chief holds the folder's lease.

Workers that come while others train wait. The chief of those that train sees them, by
``Newcomers``, and can let all meet again.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import math
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Final

from cluster.meeting import lease, ports, rendezvous
from cluster.meeting.channel import Channel, Closed, Message
from cluster.meeting.group import Group
from cluster.meeting.lease import Lease
from cluster.meeting.rendezvous import Chief, Deadline, Meeting, MissingWorkers
from cluster.spec import host_and_port

LOOK_EVERY_S: Final = 1.0  # for workers of lower ranks
_FAR_AWAY: Final = ("192.0.2.1", "2001:db8::1")  # addresses for documentation
MAX_LOOK_PAUSE_S: Final = 30.0  # for one that did not answer several times
LOOK_FOR_NEWCOMERS_EVERY_S: Final = 3.0


@dataclasses.dataclass(frozen=True)
class Options:
    """When a part of the workers may train.

    Args:
        folder: a folder on a file system that all workers share; created if missing.
        min_workers: how many have to be there, at least.
        wait_s: how long to wait for the others.
        identity: text that all workers have in common: one that is updated meanwhile stays out.
        is_finished: whether nothing is left to do for the run. Too few workers then need not wait.
    """

    folder: Path
    min_workers: int
    wait_s: float
    identity: str = ""
    is_finished: Callable[[], bool] = lambda: False

    @property
    def lease_path(self) -> Path:
        """The file of the lease."""
        return self.folder / "lease"

    def address_path(self, rank: int) -> Path:
        """The file in which a worker writes its address."""
        return self.folder / str(rank)


class RunFinished(Exception):  # noqa: N818
    """The others have finished the run while this worker was away."""


class FolderError(OSError):
    """The folder that workers share can't be written."""


def meet(
    group: Group, options: Options, timeout_s: float, report: Callable[[str], None]
) -> Meeting:
    """Connects this worker to those of the others that are there.

    Args:
        group: all workers, and the rank of this one.
        options: how many of them are enough, and where they find each other.
        timeout_s: how long to wait. It counts anew while a part of the group trains.
        report: called with what this worker waits for, if it takes long.

    Returns:
        The workers that have met.

    Raises:
        MissingWorkers: if not enough came in time.
        RunFinished: if not enough are needed any more.
        FolderError: if the folder can't be written.
        OSError: if the port of this worker is in use.
    """
    group = group.of_identity(options.identity)
    with _own_listener(group) as (listener, address):
        # Its start, as others try again at once where something new is.
        entry: dict[str, object] = {
            "address": address,
            "key": group.key,
            "start": uuid.uuid4().hex[:8],
        }
        try:
            folder = lease.Folder(options.folder, group.rank)
            lease.write(options.address_path(group.rank), entry)
        except OSError as error:
            raise FolderError(error.errno, error.strerror, str(options.folder)) from error
        port = host_and_port(address)[1]
        leader = _Leader(group, options, port, Deadline(group, timeout_s, report), report)
        lower = [_LowerRank(rank, group, options) for rank in range(group.rank)]
        while True:
            for each in lower:
                met = each.try_to_join(port, leader)
                if met is not None:
                    return met
            leader.lead(listener, until=lambda: any(each.is_due for each in lower), folder=folder)
            if leader.is_ready:
                return leader.say_go_to_all()


class _LowerRank:
    """A worker of a lower rank, which leads this one if it is there."""

    def __init__(self, rank: int, group: Group, options: Options) -> None:
        self._rank = rank
        self._group = group
        self._path = options.address_path(rank)
        self._tried: dict[str, object] | None = None  # the address that did not answer
        self._pause_s = LOOK_EVERY_S
        self._due_s = -math.inf

    @property
    def is_due(self) -> bool:
        """Whether to try again: its address is new, or enough time has passed."""
        entry = self._entry()
        return entry is not None and (entry != self._tried or time.monotonic() > self._due_s)

    def _entry(self) -> dict[str, object] | None:
        entry = lease.read(self._path)
        if entry is None and self._group.addresses is not None:
            return {"address": self._group.addresses[self._rank]}
        return entry

    def try_to_join(self, port: int, leader: _Leader) -> Meeting | None:
        """Joins it, if it is there and leads; returns the meeting, or None."""
        entry, group = self._entry(), self._group
        if entry is None or not self.is_due:
            return None
        self._pause_s = LOOK_EVERY_S if entry != self._tried else 2 * self._pause_s
        self._pause_s = min(self._pause_s, MAX_LOOK_PAUSE_S)
        self._tried = entry
        try:
            addresses, channel = rendezvous.join_at(
                str(entry["address"]), group, port, leader.deadline, on_welcome=leader.let_go
            )
        except MissingWorkers:
            raise
        except (rendezvous.Refused, OSError, KeyError, ValueError) as error:
            if str(error) == group.refusal:
                leader.report_once(f"{group.describe(self._rank)} refuses this worker: {error}")
            self._due_s = time.monotonic() + self._pause_s
            return None
        cluster = rendezvous.cluster_of(group, addresses)
        return Meeting(cluster, {0: channel}, tuple(sorted(addresses)))


class _Leader(Chief):
    """This worker's side as long as no lower rank lets it join: it lets higher ranks join."""

    def __init__(
        self,
        group: Group,
        options: Options,
        port: int,
        deadline: Deadline,
        report: Callable[[str], None],
    ) -> None:
        remark = (
            f" (workers find each other in {options.folder}, which all of them share; "
            f"{options.min_workers} or more go on without the others after {options.wait_s:g} s)"
        )
        super().__init__(group, port, deadline, remark)
        self.deadline = deadline
        self._options = options
        self._report = report
        self._lease = Lease(options.lease_path, group.rank)
        self._since_s = time.monotonic()
        self._reported: set[str] = set()
        self.is_ready = False

    def lead(
        self, listener: socket.socket, until: Callable[[], bool], folder: lease.Folder
    ) -> None:
        """Lets workers join until enough are there, which ``is_ready`` says, or ``until``."""

        def is_over() -> bool:
            try:
                folder.refresh()
                self.is_ready = self._may_train() and self._lease.take()
            except OSError as error:  # a file server may be away for a while
                self.report_once(f"{self._options.folder}: {error.strerror}; trying again")
                self.is_ready = False
            return self.is_ready or until()

        self.accept(listener, is_over)

    def let_go(self) -> None:
        """Leads no longer: those that have joined look for another worker that does."""
        for channel in self.joined.values():
            channel.close()
        self.joined.clear()

    def say_go_to_all(self) -> Meeting:
        """Starts the run of those that have joined."""
        addresses = self.say_go()
        ranks = tuple(sorted(addresses))
        channels = {ranks.index(rank): channel for rank, channel in self.joined.items()}
        cluster = rendezvous.cluster_of(self._group, addresses)
        return Meeting(cluster, channels, ranks, self._lease)

    def _checked_rank(self, hello: Message) -> int:
        is_look = "hello" in hello and hello["hello"] is None  # of Newcomers
        if is_look and hello.get("key") != self._group.key:
            self.report_once(
                "the workers that train have other flags, recipe or packages than this one, and "
                "don't take it in: start it with theirs, or start all of them again"
            )
        return super()._checked_rank(hello)

    def _may_train(self) -> bool:
        """Whether those that are here may train without the others."""
        present = {self._group.rank, *self.joined}
        if len(present) == self._group.size:
            return True
        is_held = self._lease.is_held(present)
        if is_held and self._lease.renewed_s > self._since_s:
            self._postpone()
        if not self._has_waited or is_held:
            return False
        if len(present) < self._options.min_workers:
            if self._options.is_finished():
                self.let_go()
                raise RunFinished
            return False
        return self._lease.exists or 2 * len(present) > self._group.size

    @property
    def _has_waited(self) -> bool:
        # Those that trained until now may be about to come back.
        since_s = max(self._since_s, self._lease.renewed_s)
        return time.monotonic() - since_s > self._options.wait_s

    def _postpone(self) -> None:
        """Waits on: others train, and will see this worker."""
        self.deadline.postpone()
        self._send({"postponed": True})
        self.report_once(
            "other workers train without this one, which waits until they take it in, at their "
            "next checkpoint"
        )

    def report_once(self, message: str) -> None:
        """Reports a message for people, unless it was reported before."""
        if message not in self._reported:
            self._reported.add(message)
            self._report(message)


class Newcomers:
    """Looks, in a thread of the chief, for workers that are away and come back.

    Args:
        group: all workers.
        options: where they find each other.
        ranks: of those that train.
    """

    def __init__(self, group: Group, options: Options, ranks: Iterable[int]) -> None:
        self._key = group.of_identity(options.identity).key
        self._paths = {
            rank: options.address_path(rank) for rank in set(range(group.size)) - set(ranks)
        }
        self._waiting: list[int] = []
        threading.Thread(target=self._look, name="newcomers", daemon=True).start()

    @property
    def waiting(self) -> list[int]:
        """Ranks of workers that wait to be taken in, as of a few seconds ago."""
        return self._waiting

    def _look(self) -> None:
        while True:
            time.sleep(LOOK_FOR_NEWCOMERS_EVERY_S)
            self._waiting = [rank for rank, path in self._paths.items() if self._is_waiting(path)]

    def _is_waiting(self, path: Path) -> bool:
        """Whether a worker of this group answers at the address in a file: a hello without rank."""
        entry = lease.read(path)
        if entry is None:
            return False
        try:
            channel = Channel(ports.connect(str(entry.get("address"))))
        except (OSError, ValueError):
            return False
        try:
            channel.send({"hello": None, "key": self._key})
            while channel.wait(rendezvous.ANSWER_TIMEOUT_S):
                for message in channel.receive():
                    return message.get("key") == self._key
        except Closed:
            pass
        finally:
            channel.close()
        return False


@contextlib.contextmanager
def _own_listener(group: Group) -> Iterator[tuple[socket.socket, str]]:
    """Listens at this worker's port of TensorFlow; gives the address by which others reach it."""
    if group.addresses is not None:
        address = group.addresses[group.rank]
        with ports.listen(host_and_port(address)[1]) as listener:
            yield listener, address
        return
    with ports.listen_at_free() as listener:
        host = _own_host(host_and_port(group.chief_addresses[0])[0])
        yield listener, ports.address(host, listener.getsockname()[1])


def _own_host(chief: str) -> str:
    """Returns the address of this node on the network on which the chief's node is.

    Nodes often have a loopback address by their own names (Debian's 127.0.1.1), which is of no use
    to others. Then it is the address on the network of the default route.
    """
    if chief == "localhost" or ports.is_loopback(chief):
        return "127.0.0.1"
    sources = itertools.chain.from_iterable(map(_sources, (chief, os.uname().nodename, *_FAR_AWAY)))
    return next((host for host in sources if not ports.is_loopback(host)), "127.0.0.1")


def _sources(host: str) -> Iterator[str]:
    """Returns the addresses of this node from which it would send to a host."""
    with contextlib.suppress(OSError):
        for family, _, _, _, address in socket.getaddrinfo(host, 9, type=socket.SOCK_DGRAM):
            with contextlib.suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as probe:
                probe.connect(address)  # sends nothing
                yield str(probe.getsockname()[0])
