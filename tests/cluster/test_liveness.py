"""The wire between workers that live as threads of this process, over real connections."""

from __future__ import annotations

import contextlib
import ctypes
import queue
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from cluster import channel, liveness
from cluster.channel import Channel
from cluster.liveness import Liveness, RunEnd
from cluster.spec import Cluster, local
from tests.running import Process, free_port

SOON_S = 10


class Party:
    """Workers that are connected as ``rendezvous.meet`` leaves them, each with its own wire."""

    def __init__(self, size: int, cluster_of: Callable[[int], Cluster]) -> None:
        pairs = {index: connected() for index in range(1, size)}
        self.channels = [{index: Channel(near) for index, (near, _) in pairs.items()}]
        self.channels += [{0: Channel(far)} for _, far in pairs.values()]
        self.who = cluster_of(0).who
        self.wires = [Liveness(cluster_of(i), self.channels[i]) for i in range(size)]
        self.heard: list[queue.Queue[RunEnd]] = [queue.Queue() for _ in range(size)]
        for each, heard in zip(self.wires, self.heard, strict=True):
            each.watch(heard.put)
        for each in self.wires:
            each.begin()

    def end(self, index: int) -> RunEnd:
        return self.heard[index].get(timeout=SOON_S)

    def cut(self, index: int) -> None:
        """As the kernel does when a worker's process ends; the thread of a dead one is mute."""
        self.wires[index]._is_leaving = True
        for each in self.channels[index].values():
            with contextlib.suppress(OSError):  # the other may have been first
                each._connection.shutdown(socket.SHUT_RDWR)

    def assert_quiet(self, *indices: int) -> None:
        for index in indices:
            assert self.wires[index].wait(0) is None
            assert self.heard[index].empty()


def connected() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        far = socket.create_connection(listener.getsockname())
        return listener.accept()[0], far


@pytest.fixture
def party() -> Iterator[Callable[[int], Party]]:
    made: list[Party] = []

    def make(size: int, ports: list[int] | None = None) -> Party:
        ports = ports or [1 + i for i in range(size)]  # where nobody listens
        made.append(Party(size, lambda index: local(ports, index)))
        return made[-1]

    yield make
    for each in made:
        for index in range(len(each.wires)):
            each.cut(index)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(liveness, "BEAT_EVERY_S", 0.1)
    monkeypatch.setattr(liveness, "SILENCE_S", 0.6)
    monkeypatch.setattr(liveness, "ANSWER_S", 0.2)


@pytest.mark.parametrize("lost", [0, 1, 2])
def test_a_process_that_ends_without_goodbye_is_named_everywhere(
    lost: int, party: Callable[[int], Party]
) -> None:
    workers = party(3)
    began_s = time.monotonic()
    workers.cut(lost)
    for index in {0, 1, 2} - {lost}:
        end = workers.end(index)
        assert end == RunEnd(138, f"{workers.who(lost)} was lost: its process has ended")
    assert time.monotonic() - began_s < 1


@pytest.mark.parametrize("failed", [0, 2])
def test_last_words_come_to_all_before_who_says_them_goes(
    failed: int, party: Callable[[int], Party]
) -> None:
    workers = party(3)
    workers.wires[failed].tell(2, "worker failed:\n  BadInput: so")
    assert workers.wires[(failed + 1) % 3].wait(0 if failed == 0 else SOON_S) is not None
    workers.cut(failed)
    for index in {0, 1, 2} - {failed}:
        assert workers.end(index) == RunEnd(2, "worker failed: BadInput: so")
    workers.assert_quiet(failed)


def test_last_words_of_any_length_fit_into_a_message(party: Callable[[int], Party]) -> None:
    workers = party(2)
    workers.wires[1].tell(1, "\N{SKULL}" * 5000)
    assert workers.end(0) == RunEnd(1, "\N{SKULL}" * liveness.REASON_CHARACTERS)


def test_the_first_news_is_what_counts(party: Callable[[int], Party]) -> None:
    workers = party(3)
    workers.wires[1].tell(1, "first")
    assert workers.end(0) == workers.end(2) == RunEnd(1, "first")
    workers.cut(1)
    workers.wires[2].tell(2, "second")
    assert workers.wires[0].wait(0) == RunEnd(1, "first")
    assert workers.heard[0].empty()


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 0, 2)])
def test_goodbyes_are_no_losses(order: tuple[int, ...], party: Callable[[int], Party]) -> None:
    workers = party(3)
    for index in order:
        began_s = time.monotonic()
        workers.wires[index].leave()
        assert time.monotonic() - began_s < 1, "the others have heard it"
        workers.cut(index)
    time.sleep(0.1)  # for somebody to be wrong
    workers.assert_quiet(0, 1, 2)


def test_all_may_leave_at_the_same_moment(party: Callable[[int], Party]) -> None:
    workers = party(3)
    leaving = [threading.Thread(target=each.leave) for each in workers.wires]
    for thread in leaving:
        thread.start()
    for thread in leaving:
        thread.join(SOON_S)
    workers.assert_quiet(0, 1, 2)


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("frozen", [0, 1])
def test_a_frozen_worker_is_lost_and_hears_of_it(
    frozen: int, party: Callable[[int], Party]
) -> None:
    workers = party(3)
    workers.wires[frozen]._send = lambda *_: None  # type: ignore[method-assign]
    for index in {0, 1, 2} - {frozen}:
        end = workers.end(index)
        assert end.code == 138
        assert end.reason.startswith(f"{workers.who(frozen)} was lost: it is frozen")
    if frozen:
        assert workers.end(frozen).reason.startswith(f"{workers.who(frozen)} was lost")


@pytest.mark.usefixtures("impatient")
def test_a_silent_worker_whose_tensorflow_answers_is_busy_and_not_lost(
    party: Callable[..., Party],
) -> None:
    ports = [free_port() for _ in range(2)]
    workers = party(2, ports)
    answered = threading.Semaphore(0)
    with socket.create_server(("127.0.0.1", ports[1])) as tensorflow:

        def greet() -> None:
            with contextlib.suppress(OSError):
                while True:
                    with tensorflow.accept()[0] as knock:
                        knock.sendall(b"\0\0\x18\4")
                    answered.release()

        threading.Thread(target=greet, daemon=True).start()
        workers.wires[1]._send = lambda *_: None  # type: ignore[method-assign]
        for _ in range(3):
            assert answered.acquire(timeout=SOON_S)
        workers.assert_quiet(0)
        tensorflow.shutdown(socket.SHUT_RDWR)
    assert "is frozen" in workers.end(0).reason


@pytest.mark.usefixtures("impatient")
def test_who_was_frozen_or_busy_itself_accuses_nobody(party: Callable[[int], Party]) -> None:
    workers = party(3)
    time.sleep(0.3)
    ctypes.PyDLL(None).usleep(2_000_000)  # holds Python's lock: no thread has its turn
    time.sleep(0.3)
    workers.assert_quiet(0, 1, 2)


@pytest.mark.parametrize(
    "says", [b"GET / HTTP/1.0\r\n", b"\xff\n", b"[1]\n", b"x" * (channel.MESSAGE_BYTES + 1)]
)
def test_what_is_no_message_ends_a_connection(says: bytes, party: Callable[[int], Party]) -> None:
    workers = party(2)
    workers.channels[1][0]._connection.sendall(says)
    end = workers.end(0)
    assert end == RunEnd(138, f"{workers.who(1)} was lost: it sent what is no message")


def test_messages_come_whole_and_in_order_however_they_are_cut() -> None:
    near, far = connected()
    with near, far:
        receiving = Channel(near)
        got = []
        for byte in b'{"a": 1}\n{}\n{"b": "\\n"}\n':
            far.sendall(bytes([byte]))
            assert receiving.wait(SOON_S)
            got += receiving.receive()
        assert got == [{"a": 1}, {}, {"b": "\n"}]
        with pytest.raises(ValueError, match="8192 are the most"):
            receiving.send({"long": "x" * channel.MESSAGE_BYTES})


# A process that waits as TensorFlow's start does, holding Python's lock, with a peer that goes.
GUARDED = """
import ctypes, os, socket, sys
from cluster import channel, liveness, spec
connection = socket.create_connection(("127.0.0.1", int(sys.argv[1])))
before = sys.argv[2] == "before"
if before: connection.recv(1)  # it has gone already
each = liveness.Liveness(spec.local([1, 2], 1), {0: channel.Channel(connection)})
with each.guarding():
    print("waiting", flush=True)
    ctypes.PyDLL(None).sleep(2 if sys.argv[2] == "never" else 60)
print("through", flush=True)
ctypes.PyDLL(None).sleep(1)
"""


@pytest.mark.parametrize("when", ["before", "while", "never"])
def test_a_break_while_tensorflow_starts_ends_the_process(when: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = str(listener.getsockname()[1])
        with Process(["python", "-c", GUARDED, port, when], limit_s=30) as process:
            peer, _ = listener.accept()
            with peer:
                if when == "before":
                    peer.close()
                else:
                    process.wait_for("waiting" if when == "while" else "through")
                    peer.close()
                process.wait(0 if when == "never" else -signal.SIGUSR1)
    assert 128 + signal.SIGUSR1 == 138


def test_a_forked_child_keeps_no_connection_open(party: Callable[[int], Party]) -> None:
    script = """
import os, socket, time
from cluster import channel, liveness, spec
with socket.create_server(("127.0.0.1", 0)) as listener:
    far = socket.create_connection(listener.getsockname())
    near = listener.accept()[0]
each = liveness.Liveness(spec.local([1, 2], 0), {1: channel.Channel(near)})
if os.fork() == 0:
    far.close()
    time.sleep(600)
near.close()
far.settimeout(20)
print("CLOSED" if far.recv(1) == b"" else "OPEN")
"""
    with Process(["python", "-c", script], limit_s=30) as process:
        assert "CLOSED" in process.wait(0)
