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
import errno
import ipaddress
import random
import selectors
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Final

from cluster.meeting.channel import Channel, Closed, Message
from cluster.meeting.group import FIRST_PORT, LAST_PORT, Group
from cluster.spec import Cluster, host_and_port

RETRY_EVERY_S: Final = 0.2
ANSWER_TIMEOUT_S: Final = 2.0  # for a connection, and for the chief's first answer
MAX_NAMED: Final = 1000  # missing workers that fit into a message
ADDRESSES_A_MESSAGE: Final = 100
REPORT_AFTER_S: Final = 5.0


class MissingWorkers(TimeoutError):  # noqa: N818
    """Some workers did not come; the message contains their names and addresses."""


def meet(
    group: Group, timeout_s: float, report: Callable[[str], None]
) -> tuple[Cluster, dict[int, Channel]]:
    """Connects this worker to the others; returns when every worker of the group has come.

    Args:
        group: the workers, and the rank of this one.
        timeout_s: how long to wait for them.
        report: called once with the names of missing workers, if they take ``REPORT_AFTER_S``.

    Returns:
        The cluster with all addresses, and connections. On the chief, that is the connection to
        each other worker by its index; on other workers, the connection to the chief by its index,
        0. No message is sent after the chief's go.

    Raises:
        MissingWorkers: if some workers did not come in time.
        OSError: if the port of this worker is in use.
    """
    deadline = Deadline(group, timeout_s, report)
    with _own_port(group) as port:
        if group.is_chief:
            with _chief_listener(group) as listener:
                addresses, channels = Chief(group, port, deadline).accept_all(listener)
        else:
            addresses, channel = _join(group, port, deadline)
            channels = {0: channel}
    return Cluster(addresses, group.names, group.rank), channels


class Deadline:
    """The time limit of the rendezvous, and the report of missing workers."""

    def __init__(self, group: Group, timeout_s: float, report: Callable[[str], None]) -> None:
        self._group = group
        self._timeout_s = timeout_s
        self._report = report
        self._has_reported = False
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

    def __init__(self, group: Group, port: int, deadline: Deadline) -> None:
        self._group = group
        self._port = port
        self._deadline = deadline
        self._joined: dict[int, Channel] = {}
        self._ports: dict[int, int] = {}  # of TensorFlow, as joined workers said
        self._never_joined = set(range(1, group.size))
        self._sent_missing: list[int] = []  # the newest list that all joined workers have

    def accept_all(self, listener: socket.socket) -> tuple[tuple[str, ...], dict[int, Channel]]:
        """Returns the address of each worker, and the connection to each other one by its rank."""
        joined = self._joined
        with selectors.DefaultSelector() as selector:
            selector.register(listener, selectors.EVENT_READ)
            try:
                while not self._is_complete():
                    for key, _ in selector.select(RETRY_EVERY_S):
                        if isinstance(key.fileobj, Channel):
                            self._receive(key.fileobj, selector)
                        else:
                            with contextlib.suppress(OSError):
                                channel = Channel(listener.accept()[0])
                                selector.register(channel, selectors.EVENT_READ)
                    self._check_missing()
            except BaseException:
                self._send({"missing": self._missing()[:MAX_NAMED], "over": True})
                joined.clear()
                raise
            finally:
                for key in list(selector.get_map().values()):
                    if isinstance(key.fileobj, Channel) and key.fileobj not in joined.values():
                        key.fileobj.close()
        addresses = self._addresses()
        for first in range(0, len(addresses), ADDRESSES_A_MESSAGE):
            self._send({"addresses": addresses[first : first + ADDRESSES_A_MESSAGE]})
        self._send({"go": True})
        return addresses, joined

    def _is_complete(self) -> bool:
        return len(self._joined) == self._group.size - 1

    def _addresses(self) -> tuple[str, ...]:
        """Returns the address of TensorFlow on each worker, as all of them can reach it."""
        if self._group.addresses is not None:
            return self._group.addresses
        ends = {
            rank: (channel.own_host, channel.peer_host) for rank, channel in self._joined.items()
        }
        hosts = reachable_hosts(ends)
        ports = {0: self._port, **self._ports}
        return tuple(_address(hosts[rank], ports[rank]) for rank in range(self._group.size))

    def _check_missing(self) -> None:
        """Raises MissingWorkers after the time limit; before, keeps joined workers informed."""
        missing = self._missing()
        self._deadline.check(missing)
        if missing != self._sent_missing:
            self._sent_missing = missing
            self._send({"missing": missing[:MAX_NAMED]})

    def _missing(self) -> list[int]:
        # As long as a worker has never joined, only such workers count as missing, not those that
        # joined and gave up.
        joined = self._joined.keys()
        return sorted(self._never_joined or set(range(1, self._group.size)) - joined)

    def _receive(self, channel: Channel, selector: selectors.BaseSelector) -> None:
        """Adds a worker that says hello; removes a connection that ends or sends anything else."""
        try:
            for message in channel.receive():
                rank = self._checked_rank(message)
                self._joined[rank] = channel
                self._ports[rank] = int(message.get("port", 0))
                self._never_joined.discard(rank)
                self._sent_missing = []  # this worker has no list yet
        except Closed as closed:
            channel.send({"refused": str(closed)})
            selector.unregister(channel)
            channel.close()
            for rank in [rank for rank, other in self._joined.items() if other is channel]:
                del self._joined[rank]  # it may come again

    def _checked_rank(self, hello: Message) -> int:
        """Returns the rank of the worker that said hello; raises Closed if it can't join."""
        rank = hello.get("hello")
        if hello.get("key") != self._group.key:
            if self._group.place is not None:
                raise Closed("it is the chief of another job, or of another start of this one")
            if not isinstance(rank, int) or not 0 < rank < self._group.size:
                raise Closed(f"the chief's TF_CONFIG has no worker {rank}")
            raise Closed("the chief's TF_CONFIG lists other workers")
        if not isinstance(rank, int) or not 0 < rank < self._group.size:
            raise Closed(f"the chief's group has no worker {rank}")
        if rank in self._joined:
            raise Closed(f"another process has joined as {self._group.names[rank]}")
        return rank

    def _send(self, message: Message) -> None:
        for channel in self._joined.values():
            channel.send(message)


def reachable_hosts(ends: Mapping[int, tuple[str, str]]) -> dict[int, str]:
    """Returns the host of each worker as all of them can reach it, the chief's included.

    Workers on the chief's node may have come by its loopback address, which is of no use to those
    on other nodes: they get the address by which others have reached the chief.

    Args:
        ends: of the connection of each worker, by rank: the chief's host and the worker's.
    """
    chief_hosts = [chief_host for chief_host, _ in ends.values()]
    outside = next((host for host in chief_hosts if not _is_loopback(host)), chief_hosts[0])
    return {0: outside} | {
        rank: outside if _is_loopback(host) else host for rank, (_, host) in ends.items()
    }


class Refused(Exception):  # noqa: N818
    """The chief refuses this worker, for the time being."""


def _join(group: Group, port: int, deadline: Deadline) -> tuple[tuple[str, ...], Channel]:
    """Joins the chief, again and again until it says go.

    Returns:
        The address of each worker, and the connection to the chief.
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
            except (
                socket.gaierror
            ) as error:  # of a chief that has not started, or of a typing error
                remark = f" (its name: {(error.strerror or str(error)).lower()})"
                break
            except OSError:
                pass  # the chief is not present, or has ended
        if unseen and group.addresses is not None and _accepts(group.addresses[unseen[0]]):
            unseen.popleft()
        unseen.rotate(-1)
        time.sleep(RETRY_EVERY_S)


def join_at(
    chief_address: str, group: Group, port: int, deadline: Deadline
) -> tuple[tuple[str, ...], Channel]:
    """Says hello to the chief; returns when the chief says go.

    Raises:
        Refused: if the chief refuses this worker.
        MissingWorkers: after the time limit, here or on the chief.
        OSError: if the chief is not present, or ends.
    """
    channel = Channel(_connect(chief_address))
    try:
        channel.send({"hello": group.rank, "key": group.key, "port": port})
        if not channel.wait(ANSWER_TIMEOUT_S):
            raise Closed("no answer")
        missing: list[int] = []
        addresses: list[str] = []
        while True:
            for message in channel.receive():
                if "refused" in message:
                    raise Refused(message["refused"])
                addresses += message.get("addresses", ())
                if "go" in message:
                    return tuple(addresses), channel
                missing = [rank for rank in message.get("missing", ()) if rank < group.size]
                deadline.check(missing, is_over="over" in message)
            deadline.check(missing)
            channel.wait(RETRY_EVERY_S)
    except BaseException:
        channel.close()
        raise


def _accepts(address: str) -> bool:
    """Returns whether a process accepts connections at an address."""
    try:
        with _connect(address):
            return True
    except OSError:
        return False


def _connect(address: str) -> socket.socket:
    connection = socket.create_connection(host_and_port(address), timeout=ANSWER_TIMEOUT_S)
    if connection.getsockname() == connection.getpeername():
        # Where no process listens, TCP may connect a socket to itself.
        connection.close()
        raise ConnectionRefusedError(f"no process listens at {address}")
    return connection


@contextlib.contextmanager
def _own_port(group: Group) -> Iterator[int]:
    """Keeps the port at which TensorFlow will listen in this process; gives its number."""
    if group.addresses is None:
        with _free_port() as port:
            yield port
        return
    address = group.addresses[group.rank]
    with contextlib.nullcontext() if group.is_chief else _accepting(address):
        yield host_and_port(address)[1]


@contextlib.contextmanager
def _free_port() -> Iterator[int]:
    """Keeps a port that is free on all interfaces."""
    ports = list(range(FIRST_PORT, LAST_PORT + 1))
    random.SystemRandom().shuffle(ports)  # the program's own generator stays as it is
    with contextlib.ExitStack() as stack:
        yield next(port for port in ports if _is_bound(port, stack))


def _is_bound(port: int, stack: contextlib.ExitStack) -> bool:
    """Tries to listen at a port until ``stack`` is closed; returns whether it was free."""
    try:
        stack.enter_context(_listener(port))
    except OSError:
        return False
    return True


def _chief_listener(group: Group) -> socket.socket:
    """Listens at the first of the chief's ports that is free; with TF_CONFIG there is one."""
    ports = [host_and_port(address)[1] for address in group.chief_addresses]
    for port in ports:
        try:
            return _listener(port)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
    raise OSError(errno.EADDRINUSE, f"in use: {', '.join(map(str, ports))}")


def _listener(port: int) -> socket.socket:
    """Listens at a port, on all interfaces as TensorFlow does."""
    family = socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET
    return socket.create_server(
        ("", port), family=family, dualstack_ipv6=family == socket.AF_INET6, backlog=1024
    )


@contextlib.contextmanager
def _accepting(address: str) -> Iterator[None]:
    """Accepts connections at this worker's address and closes them: other workers see it there."""
    with (
        _listener(host_and_port(address)[1]) as listener,
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


def _address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _is_loopback(host: str) -> bool:
    return ipaddress.ip_address(host.partition("%")[0]).is_loopback
