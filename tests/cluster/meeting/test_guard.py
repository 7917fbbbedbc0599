"""A guard of a process that waits as TensorFlow's start does: holding Python's lock."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.running import Process, wait_until

LIMIT_S = 20

# Its arguments: the peer's port, the time limit, the seconds of the wait, "main" or what is special
# about it, the log file, and a silent worker's port. One that "runs" holds the lock after the wait.
WAITING = """
import ctypes, os, signal, socket, sys, threading, time
from cluster.meeting.guard import Guard
port, timeout_s, wait_s, thread, log, silent_port = sys.argv[1:]
connection = socket.create_connection(("127.0.0.1", int(port)))
log = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
if thread == "handled":
    signal.signal(signal.SIGUSR1, lambda *_: None)
if thread == "blocked":
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])

def wait():
    addresses = {"worker 1 (here:1)": ("127.0.0.1", int(silent_port))}
    with Guard(
        float(timeout_s), "not started: {silent}", prefix="tfdp: ", terminal=2, log=log,
        connections={connection.fileno(): "worker 7 (there:1)"}, addresses=addresses,
        lost_while="TensorFlow started",
    ) as guard:
        print(f"guard {guard._process.pid} in the block", flush=True)
        ctypes.PyDLL(None).usleep(int(float(wait_s) * 1e6))
    print("after the block", flush=True)
    ctypes.PyDLL(None).usleep(500_000)
    print("received", connection.recv(100) if thread == "reads" else None)

def run():
    with Guard(
        float(timeout_s), "the lock is held", prefix="tfdp: ", terminal=2, log=log,
        connections={connection.fileno(): "worker 7 (there:1)"},
        lost_while="a library held the lock", patience_s=0.5,
    ) as guard:
        print(f"guard {guard._process.pid} in the block", flush=True)
        end_s = time.monotonic() + float(wait_s)
        while time.monotonic() < end_s:
            guard.postpone(float(timeout_s), "the lock is held")
            time.sleep(0.05)
        print("holds the lock", flush=True)
        ctypes.PyDLL(None).usleep(60_000_000)

waiting = threading.Thread(target=wait)
if thread == "runs":
    run()
waiting.start() if thread in ("thread", "handled") else wait()
"""


class Waiting:
    """A process that waits, and this end of its connection."""

    def __init__(
        self, process: Process, peer: socket.socket, log: Path, silent: socket.socket
    ) -> None:
        self.process, self.peer, self.log, self.silent = process, peer, log, silent

    def wait_for_guard(self) -> int:
        """Waits until it is in the block, and its guard watches; returns the guard's pid."""
        guard = int(self.process.wait_for(r"guard (\d+) in the block")[1])
        # It ignores SIGTERM once it runs.
        status = Path(f"/proc/{guard}/status")
        bit = 1 << (signal.SIGTERM - 1)
        wait_until(
            lambda: int(re.findall(r"SigIgn:\s*(\w+)", status.read_text())[0], 16) & bit,
            LIMIT_S,
            "the guard runs",
        )
        return guard


@contextlib.contextmanager
def waiting(
    folder: Path, *, timeout_s: float = 60, wait_s: float = 60, thread: str = "main"
) -> Iterator[Waiting]:
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        socket.create_server(("127.0.0.1", 0)) as silent,
    ):
        port, silent_port = (each.getsockname()[1] for each in (listener, silent))
        arguments = [port, timeout_s, wait_s, thread, folder / "log", silent_port]
        command = ["python", "-c", WAITING, *map(str, arguments)]
        with Process(command, limit_s=30) as process:
            listener.settimeout(LIMIT_S)
            with listener.accept()[0] as peer:
                peer.settimeout(LIMIT_S)
                yield Waiting(process, peer, folder / "log", silent)


LOST = "tfdp: worker 7 (there:1) was lost while TensorFlow started: its process has ended\n"


@pytest.mark.parametrize(
    ("thread", "code"),
    [
        ("main", -signal.SIGUSR1),
        ("thread", -signal.SIGUSR1),
        ("handled", -signal.SIGKILL),  # by a thread that can't reset the handler
        ("blocked", -signal.SIGKILL),
    ],
)
def test_a_break_is_said_and_ends_the_process(thread: str, code: int, tmp_path: Path) -> None:
    with waiting(tmp_path, thread=thread) as worker:
        worker.wait_for_guard()
        worker.peer.close()
        output = worker.process.wait(code)
    assert output.endswith(f"in the block\n{LOST}")
    log = worker.log.read_text()
    assert log.startswith(LOST)
    if code == -signal.SIGUSR1:
        assert re.search(r'File "<string>", line \d+ in wait\n', log)
    assert 128 + signal.SIGUSR1 == 138


def test_a_break_from_before_the_guard_is_noticed(tmp_path: Path) -> None:
    with waiting(tmp_path) as worker:
        worker.peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        worker.peer.close()  # by a reset
        assert LOST in worker.process.wait(-signal.SIGUSR1)


def test_time_that_is_up_is_said_with_the_silent_worker(tmp_path: Path) -> None:
    with waiting(tmp_path, timeout_s=0.2) as worker:
        output = worker.process.wait(-signal.SIGUSR1)
    said = "tfdp: not started: worker 1 (here:1) does not answer at its address\n"
    assert output.endswith(said)


def test_time_that_is_up_is_said_if_all_workers_answer(tmp_path: Path) -> None:
    with waiting(tmp_path, timeout_s=0.2) as worker:
        worker.silent.accept()[0].sendall(b"\0\0\x18\4")
        output = worker.process.wait(-signal.SIGUSR1)
    assert "not started: the other workers answer at their addresses\n" in output


def test_after_the_block_nothing_ends_the_process(tmp_path: Path) -> None:
    with waiting(tmp_path, timeout_s=0.6, wait_s=0.01) as worker:
        worker.process.wait_for("after the block")
        worker.peer.close()
        assert "tfdp" not in worker.process.wait(0)


def test_a_last_message_is_shown_and_stays_for_the_process_to_read(tmp_path: Path) -> None:
    said = b'{"end": 1, "reason": "worker 7 failed: so"}\n'
    with waiting(tmp_path, wait_s=1.0, thread="reads") as worker:
        worker.peer.sendall(said)
        assert f"received {said!r}" in worker.process.wait(0), "it had time to end by itself"
    with waiting(tmp_path) as worker:
        worker.peer.sendall(said)
        worker.peer.close()
        assert "block\ntfdp: worker 7 failed: so\n" in worker.process.wait(-signal.SIGUSR1)


def test_heartbeats_end_nothing_and_a_break_after_them_does(tmp_path: Path) -> None:
    with waiting(tmp_path, thread="main") as worker:
        worker.peer.sendall(b"{}\n{}\n")
        worker.wait_for_guard()
        time.sleep(0.1)  # for a wrong end
        assert worker.process.popen.poll() is None
        worker.peer.close()
        assert LOST in worker.process.wait(-signal.SIGUSR1)


def test_a_killed_process_closes_its_connections_at_once_and_takes_its_guard(
    tmp_path: Path,
) -> None:
    with waiting(tmp_path) as worker:
        guard = worker.wait_for_guard()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            os.kill(guard, number)  # the terminal's, and those of cluster managers
        os.kill(guard, signal.SIGSTOP)  # it can't do anything itself
        worker.process.signal(signal.SIGKILL)
        killed_s = time.monotonic()
        assert worker.peer.recv(1) == b""
        assert time.monotonic() - killed_s < 1
        worker.process.wait(-signal.SIGKILL)


def test_a_frozen_process_is_ended_too(tmp_path: Path) -> None:
    with waiting(tmp_path) as worker:
        worker.wait_for_guard()
        worker.process.signal(signal.SIGSTOP)
        worker.peer.close()
        assert LOST in worker.process.wait(-signal.SIGKILL)


HELD = "holds the lock\ntfdp: the lock is held\n"


def test_a_process_that_runs_postpones_its_end_until_it_holds_the_lock(tmp_path: Path) -> None:
    with waiting(tmp_path, thread="runs", timeout_s=0.5, wait_s=1) as worker:
        assert worker.process.wait(-signal.SIGUSR1).endswith(HELD)
    assert re.search(r'File "<string>", line \d+ in run\n', worker.log.read_text())


def test_a_break_is_for_the_process_if_it_runs(tmp_path: Path) -> None:
    with waiting(tmp_path, thread="runs", timeout_s=1, wait_s=0.7) as worker:
        worker.wait_for_guard()
        worker.peer.close()
        assert worker.process.wait(-signal.SIGUSR1).endswith(HELD)


@pytest.mark.parametrize(
    ("last", "said"),
    [
        (b"", "worker 7 (there:1) was lost while a library held the lock: its process has ended"),
        (b'{}\n{"end": 138, "reason": "no step: so"}\n', "no step: so"),
        (b'{}\n{"goodbye": true}\n', "the lock is held"),  # it is not lost
    ],
)
def test_a_break_ends_a_process_that_holds_the_lock(last: bytes, said: str, tmp_path: Path) -> None:
    with waiting(tmp_path, thread="runs", timeout_s=1.5, wait_s=0.1) as worker:
        worker.peer.sendall(b"{}\n")
        worker.process.wait_for("holds the lock")
        worker.peer.sendall(last)
        worker.peer.close()
        assert worker.process.wait(-signal.SIGUSR1).endswith(f"holds the lock\ntfdp: {said}\n")


def test_the_time_of_a_stopped_process_does_not_count(tmp_path: Path) -> None:
    with waiting(tmp_path, thread="runs", timeout_s=0.5, wait_s=2.5) as worker:
        worker.wait_for_guard()
        worker.process.signal(signal.SIGSTOP)
        time.sleep(1.2)  # longer than the limit
        assert worker.process.popen.poll() is None
        worker.process.signal(signal.SIGCONT)
        worker.process.wait_for("holds the lock")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_process_goes_on_without_its_guard(number: signal.Signals, tmp_path: Path) -> None:
    with waiting(tmp_path, thread="runs", wait_s=0.5) as worker:
        os.kill(worker.wait_for_guard(), number)
        worker.process.wait_for("holds the lock")
        assert "Traceback" not in worker.process.output
