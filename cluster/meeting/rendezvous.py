"""Connects all workers of a run before TensorFlow starts.

TensorFlow's own start waits for missing workers without limit, can't be interrupted, not even by a
thread, and does not name them. So the chief first listens at its address in TensorFlow's place, and
every other worker connects to it and says hello. When all have done so, the chief says go and stops
listening, and TensorFlow takes over the address. The connections stay open for
``cluster.meeting.liveness``. No ports are needed but those of TF_CONFIG.

A hello and its answer always come from processes of the same start. A process of an earlier start
(a chief that has not yet noticed the end of its run, for one) sends something else or nothing, and
does not count as present.
"""

from __future__ import annotations

import collections
import contextlib
import hashlib
import selectors
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Final

from cluster.meeting.channel import Channel, Closed, Message
from cluster.spec import Cluster, host_and_port

RETRY_EVERY_S: Final = 0.2
ANSWER_TIMEOUT_S: Final = 2.0  # for a connection, and for the chief's first answer
MAX_NAMED: Final = 1000  # missing workers that fit into a message
REPORT_AFTER_S: Final = 5.0


class MissingWorkers(TimeoutError):  # noqa: N818
    """Some workers did not come; the message contains their names and addresses."""


def connect_workers(
    cluster: Cluster, timeout_s: float, report: Callable[[str], None]
) -> dict[int, Channel]:
    """Connects this worker to the others; returns when every worker of the cluster has come.

    Args:
        cluster: the workers, and the index of this one.
        timeout_s: how long to wait for them.
        report: called once with the names of missing workers, if they take ``REPORT_AFTER_S``.

    Returns:
        On the chief, the connection to each other worker by its index; on other workers, the
        connection to the chief by its index, 0. No message is sent after the chief's go.

    Raises:
        MissingWorkers: if some workers did not come in time.
        OSError: if the port of this worker is in use.
    """
    if cluster.size == 1:
        return {}
    deadline = _Deadline(cluster, timeout_s, report)
    if cluster.is_chief:
        return _Chief(cluster, deadline).accept_all()
    return {0: _join(cluster, deadline)}


class _Deadline:
    """The time limit of the rendezvous, and the report of missing workers."""

    def __init__(self, cluster: Cluster, timeout_s: float, report: Callable[[str], None]) -> None:
        self._cluster = cluster
        self._timeout_s = timeout_s
        self._report = report
        self._has_reported = False
        self._started_s = time.monotonic()

    def check(self, missing: Iterable[int], remark: str = "", is_over: bool = False) -> None:
        """Raises MissingWorkers after the time limit; before, reports a long wait.

        Args:
            missing: indices of the missing workers.
            remark: follows their names.
            is_over: whether the time limit of the chief has passed.
        """
        waited_s = time.monotonic() - self._started_s
        names = ", ".join(self._cluster.describe(index) for index in sorted(missing)) + remark
        if waited_s > self._timeout_s or is_over:
            raise MissingWorkers(
                f"waited {self._timeout_s:g} s for {names}: start them, correct TF_CONFIG, or "
                "raise --startup_timeout_s"
            )
        if waited_s > REPORT_AFTER_S and not self._has_reported:
            self._report(f"waiting for {names}, for at most {self._timeout_s:g} s")
            self._has_reported = True


class _Chief:
    """The chief's side: accepts connections until every other worker has joined."""

    def __init__(self, cluster: Cluster, deadline: _Deadline) -> None:
        self._cluster = cluster
        self._deadline = deadline
        self._joined: dict[int, Channel] = {}
        self._never_joined = set(range(1, cluster.size))
        self._sent_missing: list[int] = []  # the newest list that all joined workers have

    def accept_all(self) -> dict[int, Channel]:
        """Returns the connection to each other worker by its index."""
        joined = self._joined
        with _listener(self._cluster.address) as listener, selectors.DefaultSelector() as selector:
            selector.register(listener, selectors.EVENT_READ)
            try:
                while len(joined) < self._cluster.size - 1:
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
        self._send({"go": True})
        return joined

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
        return sorted(self._never_joined or set(range(1, self._cluster.size)) - joined)

    def _receive(self, channel: Channel, selector: selectors.BaseSelector) -> None:
        """Adds a worker that says hello; removes a connection that ends or sends anything else."""
        try:
            for message in channel.receive():
                index = self._checked_index(message)
                self._joined[index] = channel
                self._never_joined.discard(index)
                self._sent_missing = []  # this worker has no list yet
        except Closed as closed:
            channel.send({"refused": str(closed)})
            selector.unregister(channel)
            channel.close()
            for index in [index for index, other in self._joined.items() if other is channel]:
                del self._joined[index]  # it may come again

    def _checked_index(self, hello: Message) -> int:
        """Returns the index of the worker that said hello; raises Closed if it can't join."""
        index = hello.get("hello")
        if not isinstance(index, int) or not 0 < index < self._cluster.size:
            raise Closed(f"the chief's TF_CONFIG has no worker {index}")
        if hello.get("cluster") != _digest(self._cluster):
            raise Closed("the chief's TF_CONFIG lists other workers")
        if index in self._joined:
            raise Closed(f"another process has joined as {self._cluster.names[index]}")
        return index

    def _send(self, message: Message) -> None:
        for channel in self._joined.values():
            channel.send(message)


def _digest(cluster: Cluster) -> str:
    return hashlib.sha256("\n".join(cluster.addresses).encode()).hexdigest()


class _Refused(Exception):  # noqa: N818
    """The chief refuses this worker, for the time being."""


def _join(cluster: Cluster, deadline: _Deadline) -> Channel:
    """Joins the chief, again and again until it says go; returns the connection to it."""
    # The workers that have not yet answered at their addresses, only to name them in an error.
    unseen = collections.deque(set(range(1, cluster.size)) - {cluster.index})
    remark = ""
    with _accepting(cluster.address):
        while True:
            deadline.check([0, *unseen], remark)
            try:
                return _join_once(cluster, deadline)
            except _Refused as error:
                remark = f" (the chief refuses this worker: {error})"
            except MissingWorkers:
                raise
            except OSError:
                pass  # the chief is not present, or has ended
            if unseen and _accepts(cluster.addresses[unseen[0]]):
                unseen.popleft()
            unseen.rotate(-1)
            time.sleep(RETRY_EVERY_S)


def _join_once(cluster: Cluster, deadline: _Deadline) -> Channel:
    """Says hello to the chief; returns the connection when the chief says go.

    Raises:
        _Refused: if the chief refuses this worker.
        MissingWorkers: after the time limit, here or on the chief.
        OSError: if the chief is not present, or ends.
    """
    channel = Channel(_connect(cluster.addresses[0]))
    try:
        channel.send({"hello": cluster.index, "cluster": _digest(cluster)})
        if not channel.wait(ANSWER_TIMEOUT_S):
            raise Closed("no answer")
        missing: list[int] = []
        while True:
            for message in channel.receive():
                if "refused" in message:
                    raise _Refused(message["refused"])
                if "go" in message:
                    return channel
                missing = [index for index in message.get("missing", ()) if index < cluster.size]
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


def _listener(address: str) -> socket.socket:
    """Listens at the port of ``address``, on all interfaces as TensorFlow does."""
    family = socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET
    return socket.create_server(
        ("", host_and_port(address)[1]),
        family=family,
        dualstack_ipv6=family == socket.AF_INET6,
        backlog=1024,
    )


@contextlib.contextmanager
def _accepting(address: str) -> Iterator[None]:
    """Accepts connections at this worker's address and closes them: other workers see it there."""
    with _listener(address) as listener, selectors.DefaultSelector() as selector:
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
