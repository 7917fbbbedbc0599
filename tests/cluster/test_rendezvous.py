from __future__ import annotations

import socket
import threading
import time
from collections.abc import Sequence

import pytest

from cluster import rendezvous
from cluster.rendezvous import MissingWorkers, meet
from cluster.spec import Cluster
from tests.running import free_port


def cluster(addresses: Sequence[str], index: int) -> Cluster:
    names = tuple(f"worker {i}" for i in range(len(addresses)))
    return Cluster(tuple(addresses), names, index)


def addresses(count: int, host: str = "127.0.0.1") -> list[str]:
    found: set[int] = set()
    while len(found) < count:
        found.add(free_port())
    return [f"{host}:{port}" for port in found]


def parties(all_: Sequence[str], present: Sequence[int], timeout_s: float) -> list[object]:
    """Lets some of the workers meet; gives what each came to: None, or its error."""
    results: dict[int, object] = {}
    all_done = threading.Barrier(len(present))

    def come(index: int) -> None:
        try:
            results[index] = meet(cluster(all_, index), timeout_s, waiting=lambda _: None)
        except Exception as error:
            results[index] = error
        with in_tensorflow(all_[index]):
            all_done.wait(60)

    threads = [threading.Thread(target=come, args=(index,)) for index in present]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return [results[index] for index in present]


def in_tensorflow(address: str) -> socket.socket:
    """Listens as TensorFlow's start does, to which a worker goes on that has met the others."""
    return socket.create_server(("", port(address)), family=socket.AF_INET6, dualstack_ipv6=True)


def port(address: str) -> int:
    return int(address.rpartition(":")[2])


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]"])
def test_workers_that_are_all_there_meet(host: str) -> None:
    if host == "[::1]" and not socket.has_dualstack_ipv6():
        pytest.skip("this machine has no IPv6")
    assert parties(addresses(3, host), [0, 1, 2], timeout_s=30) == [None] * 3


def test_one_worker_alone_waits_for_nobody() -> None:
    assert parties(addresses(1), [0], timeout_s=30) == [None]


def test_who_is_missing_is_named() -> None:
    all_ = addresses(3)
    first, second = parties(all_, [0, 2], timeout_s=1)
    for error in (first, second):
        assert isinstance(error, MissingWorkers)
        assert f"waited 1 s for worker 1 ({all_[1]})" in str(error)
        assert "--startup_timeout_s" in str(error)
        assert "worker 0 (" not in str(error)
        assert "worker 2 (" not in str(error)


def test_a_worker_that_is_in_tensorflow_already_counts_as_there() -> None:
    all_ = addresses(2)
    with in_tensorflow(all_[1]):
        assert parties(all_, [0], timeout_s=30) == [None]


def test_a_late_worker_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    all_, told = addresses(2), threading.Event()
    said: list[str] = []

    def waiting(words: str) -> None:
        said.append(words)
        told.set()

    clock = time.monotonic
    monkeypatch.setattr(rendezvous.time, "monotonic", lambda: 50 * clock())  # 5 s pass in 0.1 s
    early = threading.Thread(target=meet, args=(cluster(all_, 0), 5000, waiting))
    early.start()
    assert told.wait(60)
    with in_tensorflow(all_[1]):
        early.join(60)
    assert not early.is_alive()
    assert said == [f"waiting for worker 1 ({all_[1]}), for at most 5000 s"]


def test_a_taken_port_is_an_error() -> None:
    all_ = addresses(2)
    with (
        in_tensorflow(all_[0]),
        pytest.raises(OSError, match="in use"),
    ):
        meet(cluster(all_, 0), 50, waiting=lambda _: None)


def test_the_port_is_free_afterwards() -> None:
    all_ = addresses(2)
    assert parties(all_, [0, 1], timeout_s=30) == [None, None]
    for address in all_:  # TensorFlow listens there next
        in_tensorflow(address).close()
    with pytest.raises(MissingWorkers):
        meet(cluster(all_, 0), 0.1, waiting=lambda _: None)
    in_tensorflow(all_[0]).close()


def test_a_connection_to_oneself_is_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """TCP connects a socket to itself where source and destination port happen to be the same."""
    address = addresses(1)[0]

    def to_itself(_: object, timeout: float) -> socket.socket:
        knock = socket.socket()
        knock.bind(("127.0.0.1", port(address)))
        knock.connect(("127.0.0.1", port(address)))
        return knock

    monkeypatch.setattr(socket, "create_connection", to_itself)
    assert not rendezvous._answers(address)
