from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Sequence

import pytest

from cluster import rendezvous
from cluster.rendezvous import MissingWorkers, meet
from cluster.spec import Cluster
from tests.running import free_port, wait_until


def cluster(addresses: Sequence[str], index: int) -> Cluster:
    names = tuple(f"worker {i}" for i in range(len(addresses)))
    return Cluster(tuple(addresses), names, index)


def addresses(count: int, host: str = "127.0.0.1") -> list[str]:
    found: set[int] = set()
    while len(found) < count:
        found.add(free_port())
    return [f"{host}:{port}" for port in found]


def parties(all_: Sequence[str], present: Sequence[int], timeout_s: float) -> list[object]:
    """Lets some of the workers meet; gives what each came to: its channels, or its error."""
    results: dict[int, object] = {}

    def come(index: int) -> None:
        try:
            results[index] = meet(cluster(all_, index), timeout_s, waiting=lambda _: None)
        except Exception as error:
            results[index] = error

    threads = [threading.Thread(target=come, args=(index,)) for index in present]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return [results[index] for index in present]


def met(results: Sequence[object]) -> bool:
    """Whether the chief and each other worker are connected; closes their channels."""
    chief, *others = results
    assert isinstance(chief, dict) and sorted(chief) == list(range(1, len(results)))
    for index, other in enumerate(others, start=1):
        assert isinstance(other, dict) and list(other) == [0]
        other[0].send({"from": index})
        assert chief[index].wait(10) and chief[index].receive() == [{"from": index}]
    for channel in [*chief.values(), *(other[0] for other in others)]:
        channel.close()
    return True


def in_tensorflow(address: str) -> socket.socket:
    """Listens as TensorFlow does, which takes over the address when all have met."""
    return socket.create_server(("", port(address)), family=socket.AF_INET6, dualstack_ipv6=True)


def port(address: str) -> int:
    return int(address.rpartition(":")[2])


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]"])
def test_workers_that_are_all_there_meet(host: str) -> None:
    if host == "[::1]" and not socket.has_dualstack_ipv6():
        pytest.skip("this machine has no IPv6")
    assert met(parties(addresses(3, host), [0, 1, 2], timeout_s=30))


def test_one_worker_alone_waits_for_nobody() -> None:
    assert parties(addresses(1), [0], timeout_s=30) == [{}]


@pytest.mark.parametrize("missing", [[1], [0], [1, 3], [0, 2]])
def test_every_worker_that_waits_names_all_who_are_missing(missing: list[int]) -> None:
    all_ = addresses(4)
    present = [index for index in range(4) if index not in missing]
    for error in parties(all_, present, timeout_s=1):
        assert isinstance(error, MissingWorkers)
        names = ", ".join(f"worker {index} ({all_[index]})" for index in missing)
        assert f"waited 1 s for {names}: " in str(error)
        assert "--startup_timeout_s" in str(error)


@pytest.mark.parametrize("says", [b"\0\0\x18\4\0\0\0\0\0", b'{"no": "answer"', b"[]\n", b""])
def test_what_an_earlier_start_has_left_at_an_address_does_not_count(says: bytes) -> None:
    """TensorFlow of a chief that has not noticed yet greets, or is frozen and says nothing."""
    all_ = addresses(2)
    with in_tensorflow(all_[0]) as old:
        stop = threading.Event()

        def greet() -> None:
            while not stop.is_set():
                with contextlib.suppress(OSError):
                    old.accept()[0].sendall(says)

        greeting = threading.Thread(target=greet, daemon=True)
        greeting.start()
        (error,) = parties(all_, [1], timeout_s=0.5)
        stop.set()
        socket.create_connection(("127.0.0.1", port(all_[0]))).close()
        greeting.join(10)
    assert isinstance(error, MissingWorkers)
    assert f"worker 0 ({all_[0]})" in str(error)
    assert met(parties(all_, [0, 1], timeout_s=30)), "once it is gone"


def test_an_old_worker_does_not_count_but_the_new_one_at_its_address_does() -> None:
    all_ = addresses(3)
    with in_tensorflow(all_[1]):
        chief, other = parties(all_, [0, 2], timeout_s=1)
    for error in (chief, other):
        assert isinstance(error, MissingWorkers)
        assert f"for worker 1 ({all_[1]}): " in str(error)
    assert met(parties(all_, [0, 1, 2], timeout_s=30))


def test_a_worker_that_goes_while_others_wait_may_come_again() -> None:
    all_ = addresses(3)
    results: dict[int, object] = {}
    chief = threading.Thread(
        target=lambda: results.update({0: meet(cluster(all_, 0), 60, waiting=lambda _: None)})
    )
    chief.start()
    (gone,) = parties(all_, [1], timeout_s=0.5)
    assert f"for worker 2 ({all_[2]})" in str(gone), "the chief has told it who is missing"
    results[1], results[2] = parties(all_, [1, 2], timeout_s=30)
    chief.join(30)
    assert met([results[0], results[1], results[2]])


def test_strangers_and_workers_of_another_cluster_are_turned_away() -> None:
    all_ = addresses(2)
    outcome: list[object] = []
    mute = socket.socket()
    with contextlib.ExitStack():
        waiting = threading.Thread(target=lambda: outcome.extend(parties(all_, [0], timeout_s=30)))
        waiting.start()
        wait_until(lambda: rendezvous._answers(all_[0]), 10, "the chief listens")
        mute.connect(("127.0.0.1", port(all_[0])))
        for says in (b"GET / HTTP/1.0\r\n\r\n", b"\0" * 100_000, b'{"hello": 7}\n', b"{}\n"):
            with socket.create_connection(("127.0.0.1", port(all_[0])), timeout=10) as stranger:
                stranger.sendall(says)
                with contextlib.suppress(ConnectionResetError):
                    assert b"refused" in stranger.recv(1000)
        other = [all_[0], addresses(1)[0]]
        (error,) = parties(other, [1], timeout_s=0.5)
        assert "turns this worker away: its TF_CONFIG names other workers" in str(error)
    (there,) = parties(all_, [1], timeout_s=30)
    waiting.join(30)
    assert met([outcome[0], there])
    assert mute.recv(1) == b"", "a stranger who said nothing is not kept"
    mute.close()


def test_a_late_worker_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    all_, told = addresses(2), threading.Event()
    said: list[str] = []

    def waiting(words: str) -> None:
        said.append(words)
        told.set()

    clock = time.monotonic
    monkeypatch.setattr(rendezvous.time, "monotonic", lambda: 50 * clock())  # 5 s pass in 0.1 s
    results: list[object] = []
    early = threading.Thread(
        target=lambda: results.append(meet(cluster(all_, 0), 5000, waiting)), daemon=True
    )
    early.start()
    assert told.wait(60)
    results.append(meet(cluster(all_, 1), 5000, lambda _: None))
    early.join(60)
    assert met(sorted(results, key=lambda channels: 0 in channels))
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
    chief, other = parties(all_, [0, 1], timeout_s=30)
    for address in all_:  # TensorFlow listens there next, while the connections stay
        in_tensorflow(address).close()
    assert met([chief, other])
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
