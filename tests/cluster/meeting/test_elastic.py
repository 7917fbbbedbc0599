from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from cluster.meeting import elastic, lease, ports, rendezvous
from cluster.meeting.elastic import FolderError, Newcomers, Options, RunFinished
from cluster.meeting.group import Group, of_cluster, of_place
from cluster.meeting.lease import Lease
from cluster.meeting.rendezvous import MissingWorkers
from cluster.resolvers.place import Place
from cluster.spec import from_environment, local
from tests.running import Process, free_port, wait_until


@pytest.fixture(autouse=True)
def short_intervals(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rendezvous, "RETRY_EVERY_S", 0.05)
    monkeypatch.setattr(elastic, "LOOK_EVERY_S", 0.2)
    monkeypatch.setattr(elastic, "LOOK_FOR_NEWCOMERS_EVERY_S", 0.1)
    monkeypatch.setattr(lease, "CONFIRM_S", 0.05)
    monkeypatch.setattr(lease, "EXPIRES_S", 1.0)
    monkeypatch.setattr(lease, "RENEW_EVERY_S", 0.1)


def group(rank: int, size: int = 3, job: str = "mine") -> Group:
    about: Any = {"engine": "Test", "found_by": "RANK", "chief_host": "127.0.0.1", "job": job}
    return of_place(Place(rank=rank, size=size, **about))


class Meetings:
    """Workers that meet, each in a thread."""

    def __init__(
        self,
        folder: Path,
        min_workers: int = 2,
        wait_s: float = 0.3,
        is_finished: Callable[[], bool] = lambda: False,
        identity: str = "",
    ) -> None:
        self.options = Options(folder / ".workers", min_workers, wait_s, identity, is_finished)
        self.results: dict[int, Any] = {}
        self.reports: list[str] = []
        self._threads: list[threading.Thread] = []

    def start(self, groups: Sequence[Group], timeout_s: float = 30) -> Meetings:
        for each in groups:
            thread = threading.Thread(target=self._meet, args=(each, timeout_s), daemon=True)
            self._threads.append(thread)
            thread.start()
        return self

    def wait(self) -> dict[int, Any]:
        for thread in self._threads:
            thread.join(60)
        return self.results

    def _meet(self, own: Group, timeout_s: float) -> None:
        try:
            met = elastic.meet(own, self.options, timeout_s, self.reports.append)
        except Exception as error:
            met = error  # type: ignore[assignment]
        self.results[own.rank] = met


# A chief that trains, as far as others can see it.
HOLDER = """
import sys, time
from pathlib import Path
from cluster.meeting import lease
lease.RENEW_EVERY_S, lease.CONFIRM_S = 0.1, 0.05
held = lease.Lease(Path(sys.argv[1]), int(sys.argv[2]))
assert held.take()
held.keep(lambda: print("lost", flush=True))
print("holds it", flush=True)
time.sleep(600)
"""


@contextlib.contextmanager
def holding(path: Path, rank: int) -> Iterator[Process]:
    """A process that holds the lease inside of the block, and is killed at its end."""
    with Process(["python", "-c", HOLDER, str(path), str(rank)], limit_s=60) as process:
        process.wait_for("holds it")
        yield process


def assert_met(results: dict[int, Any], ranks: Sequence[int]) -> None:
    """Whether these ranks have met, and nobody else: one list, the lowest first, connected."""
    assert sorted(results) == list(ranks), results
    assert {meeting.ranks for meeting in results.values()} == {tuple(ranks)}
    assert len({meeting.cluster.addresses for meeting in results.values()}) == 1
    for index, rank in enumerate(ranks):
        meeting = results[rank]
        assert meeting.cluster.index == index
        assert meeting.cluster.name == f"worker {rank}"
        assert sorted(meeting.channels) == (list(range(1, len(ranks))) if index == 0 else [0])
        assert (meeting.lease is not None) == (index == 0)
        for channel in meeting.channels.values():
            channel.close()


def test_all_workers_meet_without_waiting_for_anybody(tmp_path: Path) -> None:
    meetings = Meetings(tmp_path, wait_s=1000)
    assert_met(meetings.start([group(rank) for rank in (2, 1, 0)]).wait(), [0, 1, 2])


def test_the_lowest_rank_that_is_there_leads(tmp_path: Path) -> None:
    results = Meetings(tmp_path).start([group(rank) for rank in (1, 2)]).wait()
    config = results[2].cluster.tf_config()
    assert_met(results, [1, 2])
    cluster = from_environment({"TF_CONFIG": config})
    assert cluster is not None
    assert (cluster.names, cluster.index) == (("worker 0", "worker 1"), 1), "tasks without gaps"


def test_a_lower_rank_that_comes_later_leads(tmp_path: Path) -> None:
    meetings = Meetings(tmp_path, wait_s=1000).start([group(1), group(2)])
    wait_until((tmp_path / ".workers" / "2").exists, 10, "they are there")
    time.sleep(0.5)  # worker 2 joins worker 1
    assert_met(meetings.start([group(0)]).wait(), [0, 1, 2])


def test_addresses_of_tf_config_are_used_before_any_file_is_there(tmp_path: Path) -> None:
    """As where a workdir is not shared: workers meet, and the run can say so."""
    addresses = [free_port() for _ in range(2)]
    halves = [Meetings(tmp_path / str(rank), min_workers=1, wait_s=1000) for rank in range(2)]
    for rank, half in enumerate(halves):
        half.start([of_cluster(local(addresses, rank))])
    results = halves[0].wait() | halves[1].wait()
    assert_met(results, [0, 1])


@pytest.mark.parametrize(
    ("present", "size", "min_workers"), [([1], 3, 2), ([0], 2, 1), ([1, 3], 4, 2)]
)
def test_too_few_workers_do_not_train(
    present: list[int], size: int, min_workers: int, tmp_path: Path
) -> None:
    """Fewer than ``min_workers``; or, the first time, not more than half."""
    meetings = Meetings(tmp_path, min_workers)
    results = meetings.start([group(rank, size) for rank in present], timeout_s=1.5).wait()
    assert all(isinstance(result, MissingWorkers) for result in results.values())
    assert str(tmp_path) in str(results[present[0]]), "it says where workers find each other"
    assert not meetings.options.lease_path.exists()


def test_half_of_the_workers_go_on_with_a_run_that_nobody_else_goes_on_with(tmp_path: Path) -> None:
    meetings = Meetings(tmp_path, min_workers=1)
    meetings.options.folder.mkdir()
    assert Lease(meetings.options.lease_path, rank=0).take()  # its holder is gone
    started_s = time.monotonic()
    assert_met(meetings.start([group(1, 2)]).wait(), [1])
    assert time.monotonic() - started_s > lease.EXPIRES_S


def test_an_earlier_process_of_one_of_them_holds_no_lease(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "EXPIRES_S", 1000)
    meetings = Meetings(tmp_path, min_workers=1)
    meetings.options.folder.mkdir()
    assert Lease(meetings.options.lease_path, rank=1).take()
    assert_met(meetings.start([group(1, 2)]).wait(), [1])


def test_of_two_halves_that_can_not_reach_each_other_one_trains(tmp_path: Path) -> None:
    """They share the folder, and no network: the one that was there first holds the lease."""
    first, second = (Meetings(tmp_path, min_workers=1) for _ in range(2))
    first.options.folder.mkdir()
    assert Lease(first.options.lease_path, rank=3).take()  # of an earlier start
    results = first.start([group(0, 4), group(1, 4)]).wait()
    assert_met(results, [0, 1])
    for rank in (0, 1):  # where the others look, nobody answers
        lease.write(first.options.address_path(rank), {"address": f"127.0.0.1:{free_port()}"})
    with holding(first.options.lease_path, rank=0) as chief:
        results = second.start([group(2, 4), group(3, 4)], timeout_s=60).results
        wait_until(lambda: second.reports, 20, "they say that they wait")
        time.sleep(3 * lease.EXPIRES_S)
        assert "other workers train without this one" in second.reports[0]
        assert results == {}
        assert "lost" not in chief.output
    assert_met(second.wait(), [2, 3])


def test_a_holder_that_was_frozen_learns_that_it_lost_the_lease(tmp_path: Path) -> None:
    old, new = (Lease(tmp_path / "lease", rank) for rank in range(2))
    lost = threading.Event()
    assert old.take()
    assert new.is_held([1])
    assert new.take()
    old.keep(lost.set)
    assert lost.wait(20)
    assert new.is_own()


def test_those_that_trained_until_now_get_time_to_come_back(tmp_path: Path) -> None:
    """They start again to take this worker in, which may take longer than their lease lasts."""
    meetings = Meetings(tmp_path, min_workers=1, wait_s=4)
    meetings.options.folder.mkdir()
    with holding(meetings.options.lease_path, rank=1):
        results = meetings.start([group(0)]).results
        wait_until(lambda: meetings.reports, 20, "it sees that they train")
        time.sleep(4)
    time.sleep(2.5)
    assert results == {}
    assert_met(meetings.start([group(1), group(2)]).wait(), [0, 1, 2])


def test_a_second_process_of_a_rank_does_not_rob_the_first(tmp_path: Path) -> None:
    second = Meetings(tmp_path, min_workers=1, wait_s=1)
    second.options.folder.mkdir()
    with holding(second.options.lease_path, rank=1) as first:
        second.start([group(1)])
        time.sleep(4)
        assert second.results == {}
        assert "lost" not in first.output
    assert_met(second.wait(), [1])


def test_too_few_workers_need_not_wait_for_the_end_of_a_finished_run(tmp_path: Path) -> None:
    done = tmp_path / "done"
    meetings = Meetings(tmp_path, min_workers=3, is_finished=done.exists)
    results = meetings.start([group(1), group(2)]).results
    time.sleep(1)
    assert results == {}
    done.touch()
    assert [type(result) for result in meetings.wait().values()] == [RunFinished, RunFinished]


def test_enough_workers_look_themselves_whether_a_run_is_finished(tmp_path: Path) -> None:
    meetings = Meetings(tmp_path, min_workers=2, is_finished=lambda: True)
    assert_met(meetings.start([group(0), group(1)]).wait(), [0, 1])


def test_a_folder_that_is_away_for_a_while_ends_nobody(tmp_path: Path) -> None:
    meetings = Meetings(tmp_path, wait_s=1000).start([group(1)])
    wait_until(meetings.options.address_path(1).exists, 10, "it waits")
    away = tmp_path / "away"
    meetings.options.folder.rename(away)
    wait_until(lambda: meetings.reports, 20, "it says so")
    assert f"{meetings.options.folder}: No such file or directory" in meetings.reports[0]
    away.rename(meetings.options.folder)
    assert_met(meetings.start([group(0), group(2)]).wait(), [0, 1, 2])


def test_a_folder_that_can_not_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / ".workers").write_text("a file")
    result = Meetings(tmp_path).start([group(0)]).wait()[0]
    assert isinstance(result, FolderError)
    assert result.filename == str(tmp_path / ".workers")


def test_a_worker_at_the_same_address_as_before_is_joined_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with TF_CONFIG, where an earlier process has not answered for long."""
    monkeypatch.setattr(elastic, "LOOK_EVERY_S", 1000)
    clusters = [
        local(addresses, rank) for addresses in [[free_port(), free_port()]] for rank in (0, 1)
    ]
    meetings = Meetings(tmp_path, wait_s=1000)
    earlier = {"address": clusters[0].address, "key": of_cluster(clusters[0]).key}
    meetings.options.folder.mkdir()
    lease.write(meetings.options.address_path(0), earlier)
    meetings.start([of_cluster(clusters[1])])
    time.sleep(1)
    meetings.start([of_cluster(clusters[0])])
    assert_met(meetings.wait(), [0, 1])


def test_a_name_that_means_the_own_machine_is_no_address_for_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As on Debian, where /etc/hosts has 127.0.1.1 for the node's name."""
    look_up = socket.getaddrinfo

    def with_loopback(host: str, *arguments: Any, **options: Any) -> Any:
        own = host in ("node1", os.uname().nodename)
        return look_up("127.0.1.1" if own else host, *arguments, **options)

    outside = list(elastic._sources("192.0.2.1"))
    if not outside:
        pytest.skip("this machine has no default route")
    monkeypatch.setattr(socket, "getaddrinfo", with_loopback)
    assert elastic._own_host("node1") == outside[0]
    assert elastic._own_host("127.0.0.1") == elastic._own_host("localhost") == "127.0.0.1"


def test_a_damaged_lease_expires_too(tmp_path: Path) -> None:
    path = tmp_path / "lease"
    path.write_bytes(b'{"name": "ab')
    observer = Lease(path, rank=0)
    assert observer.is_held([0])
    wait_until(lambda: not observer.is_held([0]), 20, "it expires")


def test_a_worker_that_was_updated_meanwhile_stays_out_and_says_why(tmp_path: Path) -> None:
    """Else its other flags would end the run of all at the next meeting."""
    ours, updated = (Meetings(tmp_path, identity=version) for version in ("1", "2"))
    ours.start([group(0)])
    wait_until((tmp_path / ".workers" / "0").exists, 10, "it leads")
    updated.start([group(2)], timeout_s=6)
    wait_until(lambda: updated.reports, 10, "it is refused")
    assert "worker 0 (on 127.0.0.1) refuses this worker: " in updated.reports[0]
    assert_met(ours.start([group(1)]).wait(), [0, 1])
    seen = Newcomers(group(0), ours.options, ranks=[0, 1])
    wait_until(lambda: len(updated.reports) > 1, 10, "the chief has looked")
    assert "other flags, recipe or packages" in updated.reports[1]
    assert seen.waiting == []
    assert isinstance(updated.wait()[2], MissingWorkers)


def test_the_chief_sees_workers_that_wait_and_no_others(tmp_path: Path) -> None:
    meetings = Meetings(tmp_path, min_workers=2)
    meetings.options.folder.mkdir()
    with contextlib.ExitStack() as stack:
        stranger = stack.enter_context(ports.listen_at_free())
        other = {"address": f"127.0.0.1:{stranger.getsockname()[1]}", "key": group(0).key}
        lease.write(meetings.options.address_path(0), other)
        gone = {"address": f"127.0.0.1:{free_port()}", "key": group(0).key}
        lease.write(meetings.options.address_path(1), gone)
        newcomers = Newcomers(group(2), meetings.options, ranks=[2])
        another_job = Meetings(tmp_path / "other").start([group(1, job="other")], timeout_s=4)
        path = another_job.options.address_path(1)
        address = wait_until(lambda: lease.read(path), 10, "it waits")
        lease.write(meetings.options.address_path(1), address)
        time.sleep(1)
        assert newcomers.waiting == []
        meetings.start([group(0)], timeout_s=5)
        wait_until(lambda: newcomers.waiting == [0], 20, "it is seen")
        assert isinstance(meetings.wait()[0], MissingWorkers)
