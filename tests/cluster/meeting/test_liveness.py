"""Liveness of workers that are threads of this process, over real connections."""

from __future__ import annotations

import contextlib
import ctypes
import queue
import socket
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from cluster.meeting import channel, liveness
from cluster.meeting.channel import Channel
from cluster.meeting.liveness import Liveness, RunEnd
from cluster.spec import Cluster, local
from tests.running import Process, free_port

LIMIT_S = 10


class Workers:
    """Workers with connections as ``rendezvous.connect_workers`` returns them."""

    def __init__(self, size: int, cluster_of: Callable[[int], Cluster]) -> None:
        pairs = {index: connected() for index in range(1, size)}
        self.channels = [{index: Channel(near) for index, (near, _) in pairs.items()}]
        self.channels += [{0: Channel(far)} for _, far in pairs.values()]
        self.describe = cluster_of(0).describe
        self.liveness = [Liveness(cluster_of(i), self.channels[i]) for i in range(size)]
        self.run_ends: list[queue.Queue[RunEnd]] = [queue.Queue() for _ in range(size)]
        for worker, run_ends in zip(self.liveness, self.run_ends, strict=True):
            worker.watch(run_ends.put)
        for worker in self.liveness:
            worker.start_heartbeats()

    def run_end(self, index: int) -> RunEnd:
        return self.run_ends[index].get(timeout=LIMIT_S)

    def cut(self, index: int) -> None:
        """Closes connections as the kernel does when a process ends, and silences the thread."""
        self.liveness[index]._is_ending = True
        for end in self.channels[index].values():
            with contextlib.suppress(OSError):  # the other end may be closed already
                end._connection.shutdown(socket.SHUT_RDWR)

    def assert_no_run_end(self, *indices: int) -> None:
        for index in indices:
            assert self.liveness[index].wait_for_end(0) is None
            assert self.run_ends[index].empty()


def connected() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        far = socket.create_connection(listener.getsockname())
        return listener.accept()[0], far


@pytest.fixture
def start() -> Iterator[Callable[..., Workers]]:
    started: list[Workers] = []

    def start(size: int, ports: list[int] | None = None) -> Workers:
        ports = ports or [1 + i for i in range(size)]  # where no process listens
        started.append(Workers(size, lambda index: local(ports, index)))
        return started[-1]

    yield start
    for workers in started:
        for index in range(len(workers.liveness)):
            workers.cut(index)


@pytest.fixture
def short_timeouts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(liveness, "HEARTBEAT_EVERY_S", 0.1)
    monkeypatch.setattr(liveness, "SILENCE_S", 0.6)
    monkeypatch.setattr(liveness, "GREETING_TIMEOUT_S", 0.2)


@pytest.mark.parametrize("lost", [0, 1])
def test_a_process_that_ends_without_goodbye_is_named_everywhere(
    lost: int, start: Callable[[int], Workers]
) -> None:
    workers = start(3)
    began_s = time.monotonic()
    workers.cut(lost)
    for index in {0, 1, 2} - {lost}:
        reason = f"{workers.describe(lost)} was lost: its process has ended"
        assert workers.run_end(index) == RunEnd(138, reason)
    assert time.monotonic() - began_s < 1


@pytest.mark.parametrize("failed", [0, 2])
def test_an_error_reaches_all_workers_before_the_failed_one_ends(
    failed: int, start: Callable[[int], Workers]
) -> None:
    workers = start(3)
    workers.liveness[failed].end_run(2, "worker failed:\n  BadInput: so")
    timeout_s = 0 if failed == 0 else LIMIT_S
    assert workers.liveness[(failed + 1) % 3].wait_for_end(timeout_s) is not None
    workers.cut(failed)
    for index in {0, 1, 2} - {failed}:
        assert workers.run_end(index) == RunEnd(2, "worker failed: BadInput: so")
    workers.assert_no_run_end(failed)


def test_an_error_of_any_length_fits_into_a_message(start: Callable[[int], Workers]) -> None:
    workers = start(2)
    workers.liveness[1].end_run(1, "\N{SKULL}" * 5000)
    assert workers.run_end(0) == RunEnd(1, "\N{SKULL}" * liveness.MAX_REASON_CHARACTERS)


def test_the_first_run_end_counts(start: Callable[[int], Workers]) -> None:
    workers = start(3)
    workers.liveness[1].end_run(1, "first")
    assert workers.run_end(0) == workers.run_end(2) == RunEnd(1, "first")
    workers.cut(1)
    workers.liveness[2].end_run(2, "second")
    assert workers.liveness[0].wait_for_end(0) == RunEnd(1, "first")
    assert workers.run_ends[0].empty()


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0)])
def test_a_worker_that_says_goodbye_is_not_lost(
    order: tuple[int, ...], start: Callable[[int], Workers]
) -> None:
    workers = start(3)
    for index in order:
        began_s = time.monotonic()
        workers.liveness[index].leave()
        assert time.monotonic() - began_s < 1, "the others have acknowledged it"
        workers.cut(index)
    time.sleep(0.1)  # for a wrong report of a loss
    workers.assert_no_run_end(0, 1, 2)


def test_all_may_leave_at_the_same_moment(start: Callable[[int], Workers]) -> None:
    workers = start(3)
    threads = [threading.Thread(target=worker.leave) for worker in workers.liveness]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LIMIT_S)
    workers.assert_no_run_end(0, 1, 2)


def test_the_chief_gets_answers_from_all_that_can_give_them(
    start: Callable[[int], Workers],
) -> None:
    workers = start(4)
    late = threading.Event()
    workers.liveness[1].answer_by(lambda question: {"to": question, "by": 1})
    workers.liveness[2].answer_by(lambda _: {"is late": late.wait(LIMIT_S)})
    chief = workers.liveness[0]
    assert chief.ask("where", 0.5) == {1: {"to": "where", "by": 1}, 3: {}}
    assert chief.ask("why", 0.5, of=[1]) == {1: {"to": "why", "by": 1}}
    late.set()
    assert chief.ask("how", LIMIT_S, of=[2]) == {2: {"is late": True}}
    workers.assert_no_run_end(0, 1, 2, 3)


@pytest.mark.usefixtures("short_timeouts")
@pytest.mark.parametrize("frozen", [0, 1])
def test_a_frozen_worker_is_lost_and_is_sent_the_news(
    frozen: int, start: Callable[[int], Workers]
) -> None:
    workers = start(3)
    workers.liveness[frozen]._send = lambda *_: None  # type: ignore[method-assign]
    for index in {0, 1, 2} - {frozen}:
        run_end = workers.run_end(index)
        assert run_end.code == 138
        assert run_end.reason.startswith(f"{workers.describe(frozen)} was lost: it is frozen")
    if frozen:
        assert workers.run_end(frozen).reason.startswith(f"{workers.describe(frozen)} was lost")


@pytest.mark.usefixtures("short_timeouts")
def test_a_silent_worker_whose_tensorflow_answers_is_busy_and_not_lost(
    start: Callable[..., Workers],
) -> None:
    ports = [free_port() for _ in range(2)]
    workers = start(2, ports)
    greetings = threading.Semaphore(0)
    with socket.create_server(("127.0.0.1", ports[1])) as tensorflow:

        def greet() -> None:
            with contextlib.suppress(OSError):
                while True:
                    with tensorflow.accept()[0] as probe:
                        probe.sendall(b"\0\0\x18\4")
                    greetings.release()

        threading.Thread(target=greet, daemon=True).start()
        workers.liveness[1]._send = lambda *_: None  # type: ignore[method-assign]
        for _ in range(2):
            assert greetings.acquire(timeout=LIMIT_S)
        workers.assert_no_run_end(0)
        tensorflow.shutdown(socket.SHUT_RDWR)
    assert "is frozen" in workers.run_end(0).reason


@pytest.mark.usefixtures("short_timeouts")
def test_a_worker_that_was_frozen_or_busy_itself_finds_no_other_lost(
    start: Callable[[int], Workers],
) -> None:
    workers = start(3)
    time.sleep(0.2)
    ctypes.PyDLL(None).usleep(900_000)  # holds Python's lock: no thread runs
    time.sleep(0.3)
    workers.assert_no_run_end(0, 1, 2)


@pytest.mark.parametrize(
    "data", [b"GET / HTTP/1.0\r\n", b"\xff\n", b"[1]\n", b"x" * (channel.MAX_MESSAGE_BYTES + 1)]
)
def test_an_invalid_message_ends_a_connection(data: bytes, start: Callable[[int], Workers]) -> None:
    workers = start(2)
    workers.channels[1][0]._connection.sendall(data)
    reason = f"{workers.describe(1)} was lost: it sent an invalid message"
    assert workers.run_end(0) == RunEnd(138, reason)


def test_messages_come_whole_and_in_order_however_they_are_cut() -> None:
    near, far = connected()
    with near, far:
        receiver = Channel(near)
        messages = []
        for byte in b'{"a": 1}\n{}\n{"b": "\\n"}\n':
            far.sendall(bytes([byte]))
            assert receiver.wait(LIMIT_S)
            messages += receiver.receive()
        assert messages == [{"a": 1}, {}, {"b": "\n"}]
        with pytest.raises(ValueError, match="8192 are the most"):
            receiver.send({"long": "x" * channel.MAX_MESSAGE_BYTES})


def test_a_forked_child_keeps_no_connection_open() -> None:
    script = """
import os, socket, time
from cluster import spec
from cluster.meeting import channel, liveness
with socket.create_server(("127.0.0.1", 0)) as listener:
    far = socket.create_connection(listener.getsockname())
    near = listener.accept()[0]
worker = liveness.Liveness(spec.local([1, 2], 0), {1: channel.Channel(near)})
if os.fork() == 0:
    far.close()
    time.sleep(600)
near.close()
far.settimeout(20)
print("CLOSED" if far.recv(1) == b"" else "OPEN")
"""
    with Process(["python", "-c", script], limit_s=30) as process:
        assert "CLOSED" in process.wait(0)
