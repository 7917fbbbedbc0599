"""Connects all workers of a run before TensorFlow starts.

TensorFlow's own start waits for missing workers without limit, can't be interrupted, not even by a
thread, and does not name them. So the chief first listens in TensorFlow's place, and every other
worker connects to it and says hello. When all have done so, the chief sends all addresses and says
go, and TensorFlow takes over. The connections stay open for ``cluster.meeting.liveness``.

With TF_CONFIG, all addresses are known: the chief listens at its own, and no ports are needed but
those of TF_CONFIG. Where an engine names only the chief, each worker chooses a port that is free on
its node; the chief sees the host of each at the other end of the connection. A worker keeps its
port until the go, so that nobody else takes it meanwhile.

A hello and its answer always come from processes of the same start. A process of an earlier start
(a chief that has not yet noticed the end of its run, for one) or of another job sends something
else or nothing, and does not count as present.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import selectors
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Final

from cluster.meeting import ports
from cluster.meeting.channel import Channel, Closed, Message
from cluster.meeting.group import Group
from cluster.meeting.lease import Lease
from cluster.spec import Cluster, host_and_port

RETRY_EVERY_S: Final = 0.2
ANSWER_TIMEOUT_S: Final = 2.0  # for the chief's first answer
HELLO_TIMEOUT_S: Final = 10.0  # for a worker's first message
MAX_NAMED: Final = 1000  # missing workers that fit into a message
ADDRESSES_A_MESSAGE: Final = 100
REPORT_AFTER_S: Final = 5.0


class MissingWorkers(TimeoutError):  # noqa: N818
    """Some workers did not come; the message contains their names and addresses."""


@dataclasses.dataclass(frozen=True)
class Meeting:
    """The workers that have met.

    Args:
        cluster: their names and addresses, and the index of this one.
        channels: on the chief, the connection to each other worker by its index; on other workers,
            the connection to the chief by its index, 0. No message is sent after the chief's go.
        ranks: of those that have met, in the order of the cluster.
        lease: on the chief, if a part of the workers may train: the lease that it holds.
    """

    cluster: Cluster
    channels: dict[int, Channel]
    ranks: tuple[int, ...]
    lease: Lease | None = None


def meet(group: Group, timeout_s: float, report: Callable[[str], None]) -> Meeting:
    """Connects this worker to the others; returns when every worker of the group has come.

    Args:
        group: the workers, and the rank of this one.
        timeout_s: how long to wait for them.
        report: called once with the names of missing workers, if they take ``REPORT_AFTER_S``.

    Returns:
        The workers, with their addresses and connections.

    Raises:
        MissingWorkers: if some workers did not come in time.
        OSError: if the port of this worker is in use.
    """
    deadline = Deadline(group, timeout_s, report)
    with _own_port(group) as port:
        if group.is_chief:
            numbers = [host_and_port(address)[1] for address in group.chief_addresses]
            with ports.listen_at_first(numbers) as at_chief:
                addresses, channels = Chief(group, port, deadline).accept_all(at_chief)
        else:
            addresses, channel = _join(group, port, deadline)
            channels = {0: channel}
    return Meeting(cluster_of(group, addresses), channels, tuple(range(group.size)))


def cluster_of(group: Group, addresses: Mapping[int, str]) -> Cluster:
    """Returns the cluster of the workers that have met, given the address of each by rank."""
    ranks = sorted(addresses)
    names = tuple(group.names[rank] for rank in ranks)
    return Cluster(tuple(addresses[rank] for rank in ranks), names, ranks.index(group.rank))


class Deadline:
    """The time limit of the rendezvous, and the report of missing workers."""

    def __init__(self, group: Group, timeout_s: float, report: Callable[[str], None]) -> None:
        self._group = group
        self._timeout_s = timeout_s
        self._report = report
        self._has_reported = False
        self._started_s = time.monotonic()

    def postpone(self) -> None:
        """Starts to count anew: the run goes on without this worker, which may have to wait."""
        self._started_s = time.monotonic()

    def check(self, missing: Iterable[int], remark: str = "", is_over: bool = False) -> None:
        """Raises MissingWorkers after the time limit; before, reports a long wait.

        Args:
            missing: ranks of the missing workers.
            remark: follows their names.
            is_over: whether the time limit of the chief has passed.
        """
        waited_s = time.monotonic() - self._started_s
        names = ", ".join(self._group.describe(rank) for rank in sorted(missing)) + remark
        if waited_s > self._timeout_s or is_over:
            correct = "" if self._group.place is not None else "correct TF_CONFIG, "
            raise MissingWorkers(
                f"waited {self._timeout_s:g} s for {names}: start them, {correct}or "
                "raise --startup_timeout_s"
            )
        if waited_s > REPORT_AFTER_S and not self._has_reported:
            self._report(f"waiting for {names}, for at most {self._timeout_s:g} s")
            self._has_reported = True


class Chief:
    """The chief's side: accepts connections until every other worker has joined."""

    def __init__(self, group: Group, port: int, deadline: Deadline, remark: str = "") -> None:
        self._group = group
        self._remark = remark  # follows the names of missing workers
        self._port = port
        self._deadline = deadline
        self.joined: dict[int, Channel] = {}
        self._ports: dict[int, int] = {}  # of TensorFlow, as joined workers said
        self._never_joined = set(range(group.size)) - {group.rank}
        self._sent_missing: list[int] = []  # the newest list that all joined workers have

    def accept_all(self, listener: socket.socket) -> tuple[dict[int, str], dict[int, Channel]]:
        """Returns the address of each worker, and the connection to each other one, by rank."""
        try:
            self.accept(listener, lambda: len(self.joined) == self._group.size - 1)
        except BaseException:
            self._send({"missing": self._missing()[:MAX_NAMED], "over": True})
            self.joined.clear()
            raise
        return self.say_go(), self.joined

    def accept(self, listener: socket.socket, is_over: Callable[[], bool]) -> None:
        """Lets workers join until ``is_over``."""
        with selectors.DefaultSelector() as selector:
            selector.register(listener, selectors.EVENT_READ)
            for channel in self.joined.values():
                selector.register(channel, selectors.EVENT_READ)
            try:
                while not is_over():
                    for key, _ in selector.select(RETRY_EVERY_S):
                        if isinstance(key.fileobj, Channel):
                            self._receive(key.fileobj, selector)
                        else:
                            with contextlib.suppress(OSError):
                                channel = Channel(listener.accept()[0])
                                selector.register(channel, selectors.EVENT_READ, time.monotonic())
                    self._close_silent(selector)
                    self._check_missing()
            finally:
                for key in list(selector.get_map().values()):
                    if isinstance(key.fileobj, Channel) and key.fileobj not in self.joined.values():
                        key.fileobj.close()

    def _close_silent(self, selector: selectors.BaseSelector) -> None:
        """Closes connections without a hello, so that strangers can't take all descriptors."""
        for key in list(selector.get_map().values()):
            since_s = key.data
            if since_s is not None and time.monotonic() - since_s > HELLO_TIMEOUT_S:
                selector.unregister(key.fileobj)
                assert isinstance(key.fileobj, Channel)
                key.fileobj.close()

    def say_go(self) -> dict[int, str]:
        """Lets all that have joined start TensorFlow; returns the address of each, by rank."""
        addresses = self._addresses()
        pairs = sorted(addresses.items())
        for first in range(0, len(pairs), ADDRESSES_A_MESSAGE):
            self._send({"addresses": pairs[first : first + ADDRESSES_A_MESSAGE]})
        self._send({"go": True})
        return addresses

    def _addresses(self) -> dict[int, str]:
        """Returns the address of TensorFlow on each worker, as all of them can reach it."""
        own_rank, joined = self._group.rank, self.joined
        if self._group.addresses is not None:
            return {rank: self._group.addresses[rank] for rank in (own_rank, *joined)}
        ends = {rank: (channel.own_host, channel.peer_host) for rank, channel in joined.items()}
        port_of = {own_rank: self._port, **self._ports}
        hosts = reachable_hosts(own_rank, ends)
        return {rank: ports.address(host, port_of[rank]) for rank, host in hosts.items()}

    def _check_missing(self) -> None:
        """Raises MissingWorkers after the time limit; before, keeps joined workers informed."""
        missing = self._missing()
        self._deadline.check(missing, self._remark)
        if missing != self._sent_missing:
            self._sent_missing = missing
            self._send({"missing": missing[:MAX_NAMED]})

    def _missing(self) -> list[int]:
        # As long as a worker has never joined, only such workers count as missing, not those that
        # joined and gave up.
        joined = self.joined.keys()
        others = set(range(self._group.size)) - {self._group.rank}
        return sorted(self._never_joined or others - joined)

    def _receive(self, channel: Channel, selector: selectors.BaseSelector) -> None:
        """Adds a worker that says hello; removes a connection that ends or sends anything else."""
        try:
            for message in channel.receive():
                rank = self._checked_rank(message)
                self.joined[rank] = channel
                selector.modify(channel, selectors.EVENT_READ)
                self._ports[rank] = int(message.get("port", 0))
                self._never_joined.discard(rank)
                self._sent_missing = []  # this worker has no list yet
        except Closed as closed:
            channel.send({"refused": str(closed), "key": self._group.key})
            selector.unregister(channel)
            channel.close()
            for rank in [rank for rank, other in self.joined.items() if other is channel]:
                del self.joined[rank]  # it may come again

    def _checked_rank(self, hello: Message) -> int:
        """Returns the rank of the worker that said hello; raises Closed if it can't join."""
        rank = hello.get("hello")
        if hello.get("key") != self._group.key:
            raise Closed(self._group.refusal)
        if not isinstance(rank, int) or not self._group.rank < rank < self._group.size:
            raise Closed(f"the chief's group has no worker {rank}")
        if rank in self.joined:
            raise Closed(f"another process has joined as {self._group.names[rank]}")
        return rank

    def _send(self, message: Message) -> None:
        for channel in self.joined.values():
            channel.send(message)


def reachable_hosts(chief: int, ends: Mapping[int, tuple[str, str]]) -> dict[int, str]:
    """Returns the host of each worker by rank, as all of them can reach it.

    Workers on the chief's node may have come by its loopback address, which is of no use to those
    on other nodes: they get the address by which others have reached the chief.

    Args:
        chief: rank of the chief.
        ends: of the connection of each other worker: the chief's host and the worker's.
    """
    chief_hosts = [chief_host for chief_host, _ in ends.values()] or ["127.0.0.1"]
    outside = next((host for host in chief_hosts if not ports.is_loopback(host)), chief_hosts[0])
    return {chief: outside} | {
        rank: outside if ports.is_loopback(host) else host for rank, (_, host) in ends.items()
    }


class Refused(Exception):  # noqa: N818
    """The chief refuses this worker, for the time being."""


def _join(group: Group, port: int, deadline: Deadline) -> tuple[dict[int, str], Channel]:
    """Joins the chief, again and again until it says go.

    Returns:
        The address of each worker by rank, and the connection to the chief.
    """
    # The workers that have not yet answered at their addresses, only to name them in an error.
    unseen = collections.deque(set(range(1, group.size)) - {group.rank} if group.addresses else ())
    remark = ""
    while True:
        for address in group.chief_addresses:
            deadline.check([0, *unseen], remark)
            try:
                return join_at(address, group, port, deadline)
            except Refused as error:
                remark = f" (the chief refuses this worker: {error})"
            except MissingWorkers:
                raise
            except socket.gaierror as error:
                # The chief has not started, or its name is misspelt.
                remark = f" (its name: {(error.strerror or str(error)).lower()})"
                break
            except OSError:
                pass  # the chief is not present, or has ended
        if unseen and group.addresses is not None and ports.accepts(group.addresses[unseen[0]]):
            unseen.popleft()
        unseen.rotate(-1)
        time.sleep(RETRY_EVERY_S)


def join_at(
    chief_address: str,
    group: Group,
    port: int,
    deadline: Deadline,
    on_welcome: Callable[[], None] = lambda: None,
) -> tuple[dict[int, str], Channel]:
    """Says hello to the chief; returns when the chief says go.

    Args:
        chief_address: where the chief is expected.
        group: the workers, and the rank of this one.
        port: of TensorFlow in this process.
        deadline: the time limit.
        on_welcome: called when the chief has answered.

    Returns:
        The address of each worker by rank, and the connection to the chief.

    Raises:
        Refused: if the chief refuses this worker.
        MissingWorkers: after the time limit, here or on the chief.
        OSError: if the chief is not present, or ends.
    """
    channel = Channel(ports.connect(chief_address))
    try:
        channel.send({"hello": group.rank, "key": group.key, "port": port})
        if not channel.wait(ANSWER_TIMEOUT_S):
            raise Closed("no answer")
        missing: list[int] = []
        addresses: dict[int, str] = {}
        while True:
            for message in channel.receive():
                if "refused" in message:
                    raise Refused(message["refused"])
                on_welcome()
                addresses.update(message.get("addresses", ()))
                if "go" in message:
                    return addresses, channel
                if "postponed" in message:
                    deadline.postpone()
                if "missing" in message:
                    missing = [rank for rank in message["missing"] if rank < group.size]
                deadline.check(missing, is_over="over" in message)
            deadline.check(missing)
            channel.wait(RETRY_EVERY_S)
    except BaseException:
        channel.close()
        raise


@contextlib.contextmanager
def _own_port(group: Group) -> Iterator[int]:
    """Keeps the port at which TensorFlow will listen in this process; gives its number."""
    if group.addresses is None:
        with ports.listen_at_free() as held:
            yield int(held.getsockname()[1])
        return
    address = group.addresses[group.rank]
    with contextlib.nullcontext() if group.is_chief else _accepting(address):
        yield host_and_port(address)[1]


@contextlib.contextmanager
def _accepting(address: str) -> Iterator[None]:
    """Accepts connections at this worker's address and closes them: other workers see it there."""
    with (
        ports.listen(host_and_port(address)[1]) as listener,
        selectors.DefaultSelector() as selector,
    ):
        stop_reader, stop_writer = socket.socketpair()
        selector.register(listener, selectors.EVENT_READ)
        selector.register(stop_reader, selectors.EVENT_READ)

        def accept() -> None:
            while all(key.fileobj is not stop_reader for key, _ in selector.select()):
                with contextlib.suppress(OSError):
                    listener.accept()[0].close()

        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop_writer.close()
            thread.join()
            stop_reader.close()
