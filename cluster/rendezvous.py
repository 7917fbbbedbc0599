"""Waiting until every worker is there, before TensorFlow waits for them without end.

TensorFlow's own start can't be interrupted, not even by a thread, and names nobody. So the chief
first listens at its address in TensorFlow's place, and every other worker says hello to it there.
When all have come the chief says go, closes its ears, and TensorFlow takes over the address; the
connections stay, and become the wire (``cluster.wire``). No port is needed but those of TF_CONFIG.

A hello comes from a process that has just started, and is answered by one. Whatever an earlier
start has left behind, a chief that has not noticed yet that its run is over, say, speaks another
language or is silent, and does not count as there.
"""

from __future__ import annotations

import collections
import contextlib
import hashlib
import selectors
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Final

from cluster.channel import Channel, Closed, Message, host_and_port
from cluster.spec import Cluster

KNOCK_EVERY_S: Final = 0.2
ANSWER_S: Final = 2.0  # for a connection, and for the chief to return a hello
MOST_NAMED: Final = 1000  # so that they fit into a message
PATIENCE_S: Final = 5.0  # then people are told whom the others wait for


class MissingWorkers(TimeoutError):  # noqa: N818
    """Workers that never came; the message names them and their addresses."""


def meet(cluster: Cluster, timeout_s: float, waiting: Callable[[str], None]) -> dict[int, Channel]:
    """Returns when every worker of the cluster has come.

    Args:
        cluster: who the workers are, and which this is.
        timeout_s: how long to wait at the most.
        waiting: told, once, whom the others wait for, if that takes more than a few seconds.

    Returns:
        The chief's connection to each other worker, by its place; elsewhere that to the chief, 0.
        Nobody has said anything on them since the chief said go.

    Raises:
        MissingWorkers: if some did not come in time.
        OSError: if this worker's own port is taken.
    """
    clock = _Clock(cluster, timeout_s, waiting)
    if cluster.size == 1:
        return {}
    return _receive_all(cluster, clock) if cluster.is_chief else _go_to_chief(cluster, clock)


class _Clock:
    """Says whom this worker waits for, and when it is too long."""

    def __init__(self, cluster: Cluster, timeout_s: float, waiting: Callable[[str], None]) -> None:
        self._cluster = cluster
        self._timeout_s = timeout_s
        self._waiting: Callable[[str], None] | None = waiting
        self._began_s = time.monotonic()

    def look(self, missing: Iterable[int], remark: str = "", is_over: bool = False) -> None:
        """Raises MissingWorkers if the time is up, or another worker's is."""
        waited_s = time.monotonic() - self._began_s
        who = ", ".join(self._cluster.who(index) for index in sorted(missing)) + remark
        if waited_s > self._timeout_s or is_over:
            raise MissingWorkers(
                f"waited {self._timeout_s:g} s for {who}: start them, correct TF_CONFIG, or "
                "raise --startup_timeout_s"
            )
        if waited_s > PATIENCE_S and self._waiting is not None:
            self._waiting(f"waiting for {who}, for at most {self._timeout_s:g} s")
            self._waiting = None


def _receive_all(cluster: Cluster, clock: _Clock) -> dict[int, Channel]:
    """The chief's part."""
    here: dict[int, Channel] = {}
    never_came = set(range(1, cluster.size))
    missing = sorted(never_came)
    told: list[int] = []  # of whom those who are here know that they are missing
    with _listener(cluster.address) as listener, selectors.DefaultSelector() as selector:
        selector.register(listener, selectors.EVENT_READ)
        try:
            while len(here) < cluster.size - 1:
                for key, _ in selector.select(KNOCK_EVERY_S):
                    if key.fileobj is listener:
                        with contextlib.suppress(OSError):
                            selector.register(Channel(listener.accept()[0]), selectors.EVENT_READ)
                        continue
                    assert isinstance(key.fileobj, Channel)
                    if _listen_to(key.fileobj, cluster, here, selector):
                        never_came -= set(here)
                        told = []  # the newcomer does not know yet
                # Some have come and given up: it is not they whom the others wait for.
                missing = sorted(never_came or set(range(1, cluster.size)) - set(here))
                clock.look(missing)
                if missing != told:
                    told = missing
                    _tell(here, {"missing": missing[:MOST_NAMED]})
        except BaseException:
            _tell(here, {"missing": missing[:MOST_NAMED], "over": True})
            here.clear()
            raise
        finally:
            for key in list(selector.get_map().values()):
                if isinstance(key.fileobj, Channel) and key.fileobj not in here.values():
                    key.fileobj.close()
    _tell(here, {"go": True})
    return here


def _listen_to(
    channel: Channel, cluster: Cluster, here: dict[int, Channel], selector: selectors.BaseSelector
) -> bool:
    """Takes in one who says hello, or drops one who leaves; returns whether one came."""
    try:
        messages = channel.receive()
        for message in messages:
            here[_checked(cluster, message, here)] = channel
    except Closed as closed:
        channel.send({"refused": str(closed)})
        selector.unregister(channel)
        channel.close()
        for index in [index for index, each in here.items() if each is channel]:
            del here[index]  # it may come again
        return False
    return bool(messages)


def _tell(here: Mapping[int, Channel], message: Message) -> None:
    for channel in here.values():
        channel.send(message)


def _checked(cluster: Cluster, message: Message, here: Mapping[int, Channel]) -> int:
    """The place of who said hello; Closed if the chief doesn't take it for one of its workers."""
    index = message.get("hello")
    if not isinstance(index, int) or not 0 < index < cluster.size:
        raise Closed(f"it has no worker {index}")
    if message.get("cluster") != _digest(cluster):
        raise Closed("its TF_CONFIG names other workers")
    if index in here:
        raise Closed(f"it has a {cluster.names[index]} already")
    return index


def _digest(cluster: Cluster) -> str:
    return hashlib.sha256("\n".join(cluster.addresses).encode()).hexdigest()


def _go_to_chief(cluster: Cluster, clock: _Clock) -> dict[int, Channel]:
    """Any other worker's part."""
    # Those who have not answered yet at their addresses; that matters only to name them.
    unseen = collections.deque(set(range(1, cluster.size)) - {cluster.index})
    remark = ""
    with _answering(cluster.address):
        while True:
            clock.look([0, *unseen], remark)
            channel = None
            try:
                channel = Channel(_connect(cluster.addresses[0]))
                _say_hello(cluster, channel, clock)
                return {0: channel}
            except BaseException as error:
                if channel is not None:
                    channel.close()
                if isinstance(error, _Refused):
                    remark = f" (who turns this worker away: {error})"
                elif not isinstance(error, OSError) or isinstance(error, MissingWorkers):
                    raise
            if unseen and _answers(cluster.addresses[unseen[0]]):
                unseen.popleft()
            unseen.rotate(-1)
            time.sleep(KNOCK_EVERY_S)


class _Refused(Exception):  # noqa: N818
    pass


def _say_hello(cluster: Cluster, channel: Channel, clock: _Clock) -> None:
    """Returns when the chief says go; Closed if it is not there, or is no more."""
    channel.send({"hello": cluster.index, "cluster": _digest(cluster)})
    missing: list[int] = []
    if not channel.wait(ANSWER_S):
        raise Closed("no answer")
    while True:
        for message in channel.receive():
            if "refused" in message:
                raise _Refused(message["refused"])
            if "go" in message:
                return
            missing = [index for index in message.get("missing", ()) if index < cluster.size]
            clock.look(missing, is_over="over" in message)
        clock.look(missing)
        channel.wait(KNOCK_EVERY_S)


def _answers(address: str) -> bool:
    try:
        with _connect(address):
            return True
    except OSError:
        return False


def _connect(address: str) -> socket.socket:
    connection = socket.create_connection(host_and_port(address), timeout=ANSWER_S)
    if connection.getsockname() == connection.getpeername():
        # Where nobody listens, TCP may connect a socket to itself.
        connection.close()
        raise ConnectionRefusedError(f"nobody listens at {address}")
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
def _answering(address: str) -> Iterator[None]:
    """Accepts connections at this worker's address and closes them: it is there."""
    with _listener(address) as listener, selectors.DefaultSelector() as selector:
        done, wake = socket.socketpair()
        selector.register(listener, selectors.EVENT_READ)
        selector.register(done, selectors.EVENT_READ)

        def answer() -> None:
            while all(key.fileobj is not done for key, _ in selector.select()):
                with contextlib.suppress(OSError):
                    listener.accept()[0].close()

        answering = threading.Thread(target=answer, daemon=True)
        answering.start()
        try:
            yield
        finally:
            wake.close()
            answering.join()
            done.close()
