"""When a cluster can start on hosts. Keepers run here, without ssh; tests/processes has ssh."""

from __future__ import annotations

import contextlib
import itertools
import select
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster import policy
from cluster.hosts import connection, host, hosts
from cluster.hosts.host import Job
from cluster.hosts.hostlist import Host
from cluster.hosts.hosts import Hosts
from cluster.hosts.worker import RemoteWorker

LIMIT_S = 30
# What stands for ssh to a host: how its name ends determines what happens.
SHELL_OF = {
    "refused": "echo 'a warning' >&2; echo 'Connection refused' >&2; exit 255",
    "silent": "exec sleep 600",
    "chatty": "yes",
    "wrong": r"""printf '\0tfdp-keeper\n{"beat": 1}\n'; exec sleep 600""",
    "nologin": "echo 'This account is not available.'; exit 1",
}


def stand_in(name: str, config: str | None) -> list[str]:
    """A command that starts a keeper here as if on host ``name``, an address with an ending."""
    real = connection.keeper_command(name, config)[-1]
    address, _, kind = name.partition("-")
    connected = f"export SSH_CONNECTION='10.0.0.9 5000 {address} 22'; echo welcome; {real}"
    return ["/bin/sh", "-c", SHELL_OF.get(kind, connected)]


class Start:
    """Hosts with stand-ins, and what they have logged."""

    def __init__(self, names: str, command: list[str], min_workers: int | None) -> None:
        self.log: list[str] = []
        listed = [Host(name, 2) for name in names.split()]
        self.hosts = Hosts(
            listed,
            Job(command, "/", {}),
            min_workers=min_workers,
            ssh_config=None,
            log=self.log.append,
        )

    def addresses(self) -> dict[int, str]:
        """Waits until it is known which slots can be used."""
        self.hosts.begin()
        deadline_s = time.monotonic() + LIMIT_S
        while (addresses := self.hosts.poll()) is None:
            assert time.monotonic() < deadline_s
            self.serve()
        return addresses

    def serve(self) -> None:
        sources, targets = self.hosts.sources, self.hosts.targets
        readable, writable, _ = select.select(sources, targets, [], self.hosts.tend_every_s)
        self.hosts.tend([*readable, *writable])

    def end_of(self, worker: RemoteWorker) -> tuple[int, str]:
        """Waits until a worker has ended; returns its exit code and loss."""
        deadline_s = time.monotonic() + LIMIT_S
        while (code := worker.poll()) is None:
            assert time.monotonic() < deadline_s
            self.serve()
        return code, worker.loss


@pytest.fixture(autouse=True)
def without_ssh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hosts, "keeper_command", stand_in)


@contextlib.contextmanager
def start(
    names: str, command: list[str] | None = None, min_workers: int | None = None
) -> Iterator[Start]:
    started = Start(names, command or ["true"], min_workers)
    with started.hosts:
        yield started


def test_each_slot_gets_its_hosts_address() -> None:
    with start("10.0.0.1 fd00::2 ::ffff:10.0.0.3") as started:
        addresses = started.addresses()
        places = [address.rpartition(":")[0] for address in addresses.values()]
        assert list(addresses) == list(range(6))
        assert places == [*["10.0.0.1"] * 2, *["[fd00::2]"] * 2, *["10.0.0.3"] * 2]
        assert len({address.rpartition(":")[2] for address in addresses.values()}) == 6
        assert started.log == [
            "worker 0, 1 on 10.0.0.1 (10.0.0.1); worker 2, 3 on fd00::2 (fd00::2); "
            "worker 4, 5 on ::ffff:10.0.0.3 (10.0.0.3)"
        ]


def test_a_worker_runs_there_again_over_the_same_connection() -> None:
    script = "import os, sys; print(os.environ['X']); sys.exit(5)"
    with start("10.0.0.1", [sys.executable, "-u", "-c", script]) as started:
        for _ in range(2):
            started.addresses()
            worker = started.hosts.start(1, "worker 1", {"X": "y"})
            assert started.end_of(worker) == (5, "")
            assert worker.stdout.read() == b"y\n"
        assert started.log[0] == started.log[1]


@pytest.mark.parametrize(
    ("names", "code", "message"),
    [
        ("10.0.0.1-refused", 255, "host 10.0.0.1-refused can't be reached: Connection refused"),
        ("10.0.0.1-nologin", 255, "can't be reached: This account is not available"),
        ("10.0.0.1-silent", 255, "can't be reached: it did not answer for"),
        ("10.0.0.1-chatty", 255, "can't be reached: its answer is wrong: ValueError"),
        ("10.0.0.1-wrong", 255, "can't be reached: its answer is wrong: AttributeError"),
        ("10.0.0.1 127.0.0.1", 2, "was reached at 127.0.0.1, where others can't reach it"),
        ("10.0.0.1 10.0.0.1-twin", 2, "host 10.0.0.1-twin is 10.0.0.1 as well"),
        ("fe80::1%eth0", 2, "was reached at no address for others (fe80::1%eth0)"),
    ],
)
def test_what_prevents_a_start_is_named(
    names: str, code: int, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "ANSWER_S", 1.0)
    with start(names) as started:
        with pytest.raises(policy.CantStart) as error:
            started.addresses()
        (exit_,) = error.value.exits
        assert exit_.code == code
        assert message in str(exit_)
        assert started.log == []


def test_a_host_on_loopback_may_be_the_only_one() -> None:
    with start("127.0.0.1") as started:
        assert list(started.addresses()) == [0, 1]


def test_enough_workers_start_without_the_others() -> None:
    with start("10.0.0.1-refused 10.0.0.2 10.0.0.3", min_workers=4) as started:
        assert list(started.addresses()) == [2, 3, 4, 5]
        assert started.log == [
            "host 10.0.0.1-refused can't be reached: Connection refused: going on with 4 of 6 "
            "workers",
            "worker 0, 1 on 10.0.0.2 (10.0.0.2); worker 2, 3 on 10.0.0.3 (10.0.0.3)",
        ]
    with (
        start("10.0.0.1-refused 10.0.0.2 10.0.0.3", min_workers=5) as started,
        pytest.raises(policy.CantStart, match=r"10\.0\.0\.1-refused can't be reached"),
    ):
        started.addresses()


def test_what_all_hosts_lack_is_an_error_though_some_would_be_enough(tmp_path: Path) -> None:
    with start("10.0.0.1 10.0.0.2", ["no-such-program"], min_workers=1) as started:
        with pytest.raises(policy.CantStart) as error:
            started.addresses()
        assert [exit_.code for exit_ in error.value.exits] == [2, 2]
        assert "host 10.0.0.1 has no program no-such-program" in str(error.value)


def test_what_a_host_lacks_after_it_was_ready_may_come_back(tmp_path: Path) -> None:
    program = tmp_path / "run.sh"
    program.touch(0o755)
    with start("10.0.0.1", [str(program)]) as started:
        started.addresses()
        program.unlink()
        with pytest.raises(policy.CantStart) as error:
            started.addresses()
        assert [exit_.code for exit_ in error.value.exits] == [255]
        program.touch(0o755)
        started.addresses()


def test_an_interpreter_that_does_not_run_is_named(tmp_path: Path) -> None:
    program = tmp_path / "python3"
    program.write_text("#!/bin/sh\necho 'no module named encodings' >&2; exit 1\n")
    program.chmod(0o755)
    with (
        start("10.0.0.1", [str(program)]) as started,
        pytest.raises(policy.CantStart, match=r"can't run .*python3: no module named encodings"),
    ):
        started.addresses()


def test_a_host_that_does_not_say_what_it_was_asked_can_be_tried_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    program = tmp_path / "python3"
    program.write_text("#!/bin/sh\nexec sleep 600\n")
    program.chmod(0o755)
    monkeypatch.setattr(host, "LOOK_S", 1.0)
    with start("10.0.0.1", [str(program)]) as started:
        for _ in range(2):
            with pytest.raises(policy.CantStart) as error:
                started.addresses()
            assert [exit_.code for exit_ in error.value.exits] == [255]
            assert "did not answer within 1 s" in str(error.value)


def test_workers_are_lost_with_their_host() -> None:
    with start("10.0.0.1 10.0.0.2", ["sleep", "600"]) as started:
        started.addresses()
        workers = [started.hosts.start(slot, f"worker {slot}", {}) for slot in (0, 1, 2)]
        lost = started.hosts._hosts[0].connection
        assert lost is not None
        lost._popen.kill()
        for worker in workers[:2]:
            code, loss = started.end_of(worker)
            assert code == -9
            assert loss == "was lost with host 10.0.0.1: ssh was killed by signal 9"
        assert workers[2].poll() is None
        assert started.hosts.start(0, "worker 0", {}).poll() == -9, "there is no connection"
        assert list(itertools.islice(started.addresses(), 4)) == [0, 1, 2, 3], "it is back"
