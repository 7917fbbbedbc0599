"""Tasks as real processes that report to ``Reports``, without Slurm."""

from __future__ import annotations

import contextlib
import selectors
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from cluster.slurm import messages
from cluster.slurm.reports import Reports
from tests.running import Process, run, wait_until

LIMIT_S = 30
SLEEP = "import time; print('asleep', flush=True); time.sleep(600)"


class Host:
    """Reports as ``cluster.slurm`` has them, which a test lets read."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self.reports = Reports(self._selector)

    def read(self) -> bool:
        """Reads what has arrived; the value is for ``wait_until``."""
        for key, _ in self._selector.select(0):
            key.data()
        return False

    def wait_for(self, condition: str) -> None:
        names = {"reports": self.reports}
        wait_until(lambda: self.read() or eval(condition, names), LIMIT_S, condition)


@pytest.fixture
def host() -> Iterator[Host]:
    host = Host()
    with host.reports:
        yield host


@contextlib.contextmanager
def task(host: Host, script: str, rank: int = 0, **variables: str) -> Iterator[Process]:
    slurm = {
        "SLURM_LAUNCH_NODE_IPADDR": "127.0.0.1",
        "SLURM_PROCID": str(rank),
        "SLURM_STEP_NUM_TASKS": "2",
        "SLURMD_NODENAME": f"node{rank}",
    }
    command = ["python", "-m", "cluster.slurm.task", "python", "-c", script]
    env = {**slurm, **host.reports.environ, **variables}
    with Process(command, env=env, limit_s=LIMIT_S) as process:
        yield process


@pytest.mark.parametrize(
    ("script", "code", "own_code"),
    [
        ("", 0, 0),
        ("import sys; sys.exit(2)", 2, 2),
        ("import sys; sys.exit(138)", 138, 138),
        ("import os; os.kill(os.getpid(), 9)", -9, 137),
    ],
)
def test_a_task_reports_the_code_of_its_command(
    host: Host, script: str, code: int, own_code: int
) -> None:
    with task(host, script, rank=1) as process:
        host.wait_for("reports.tasks and not reports.running")
        process.wait(own_code)
    (ended,) = host.reports.pop_ended()
    assert (str(ended.end.worker), ended.end.code) == ("worker 1 (node1)", code)
    assert host.reports.size == 2
    assert not host.reports.have_all_ended, "worker 0 has not started"
    assert host.reports.signalled is None


def test_exits_come_in_the_order_of_time(host: Host) -> None:
    with task(host, SLEEP) as first, task(host, "input()", rank=1) as second:
        host.wait_for("len(reports.tasks) == 2 and len(reports.running) == 1")
        second.wait(1)
        host.reports.signal(signal.SIGKILL)
        host.wait_for("reports.have_all_ended")
        first.wait(137)
    assert [ended.code for ended in host.reports.pop_ended()] == [1, -9]
    assert host.reports.pop_ended() == []


def test_a_signal_reaches_a_command_that_connects_later(host: Host) -> None:
    host.reports.signal(signal.SIGTERM)
    with task(host, SLEEP) as process:
        host.wait_for("reports.tasks and not reports.running")
        process.wait(143)
    assert [ended.code for ended in host.reports.pop_ended()] == [-15]


def test_a_signal_that_slurm_sends_to_the_task_is_reported_and_not_passed_on(host: Host) -> None:
    with task(host, SLEEP) as process:
        process.wait_for("asleep")
        for number in (signal.SIGUSR1, signal.SIGTERM):
            process.signal(number)
        host.wait_for("reports.signalled is not None")
        assert host.reports.signalled == signal.SIGTERM
        assert [each.is_running for each in host.reports.tasks.values()] == [True]


def test_a_killed_task_is_lost_and_takes_its_command_with_it(host: Host) -> None:
    with task(host, SLEEP) as process:
        process.wait_for("asleep")
        (command,) = psutil.Process(process.pid).children()
        process.signal(signal.SIGKILL)
        host.wait_for("reports.tasks and not reports.running")
        wait_until(lambda: not command.is_running(), LIMIT_S, "the command has ended")
    assert [str(ended.end) for ended in host.reports.pop_ended()] == ["worker 0 (node0) was lost"]


def test_a_task_ends_its_command_if_cluster_slurm_is_lost() -> None:
    host = Host()
    with task(host, SLEEP) as process:
        process.wait_for("asleep")
        host.wait_for("reports.running")
        (command,) = psutil.Process(process.pid).children()
        host.reports.__exit__()
        assert "cluster.slurm has ended, or can't be reached" in process.wait(137)
        assert not command.is_running()


def test_a_command_gets_neither_token_nor_port(host: Host) -> None:
    script = "import os; print([name for name in os.environ if name.startswith('CLUSTER_')])"
    with task(host, script) as process:
        host.wait_for("reports.tasks and not reports.running")
        assert process.wait(0) == "[]\n"


def test_a_task_that_can_not_report_says_why(host: Host) -> None:
    command = ["python", "-m", "cluster.slurm.task", "true"]
    assert "(--export=ALL)" in run(command, expect=2, limit_s=LIMIT_S)
    with task(host, SLEEP, **{messages.PORT_VARIABLE: "1"}) as process:
        assert "can't connect to cluster.slurm at 127.0.0.1:1" in process.wait(138)


def test_a_command_that_does_not_exist_is_a_permanent_error(host: Host, tmp_path: Path) -> None:
    env = {"SLURM_LAUNCH_NODE_IPADDR": "127.0.0.1", "SLURM_PROCID": "0"}
    env |= {"SLURM_STEP_NUM_TASKS": "1", **host.reports.environ}
    command = ["python", "-m", "cluster.slurm.task", str(tmp_path / "no-such")]
    with Process(command, env=env, limit_s=LIMIT_S) as process:
        host.wait_for("reports.have_all_ended")
        assert "no-such" in process.wait(1)


@pytest.mark.parametrize(
    "data",
    [b"GET / HTTP/1.1\r\n", b"[]\n", b'{"token": "a guess", "rank": 0}\n', b"x" * 9999, b""],
)
def test_whoever_has_no_token_is_refused(host: Host, data: bytes) -> None:
    port = int(host.reports.environ[messages.PORT_VARIABLE])
    with socket.create_connection(("127.0.0.1", port), LIMIT_S) as stranger:
        stranger.sendall(data)
        stranger.shutdown(socket.SHUT_WR)
        stranger.setblocking(False)

        def is_closed() -> bool:
            host.read()
            try:
                return stranger.recv(1) == b""
            except BlockingIOError:
                return False
            except ConnectionResetError:
                return True

        wait_until(is_closed, LIMIT_S, "the connection is closed")
    assert not host.reports.tasks
