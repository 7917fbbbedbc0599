from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from cluster.meeting import ports, rendezvous
from cluster.meeting.channel import Channel
from cluster.meeting.group import Group, of_cluster, of_place
from cluster.meeting.rendezvous import MissingWorkers
from cluster.resolvers.place import Place
from cluster.spec import Cluster
from tests.running import free_port, wait_until


@pytest.fixture(autouse=True)
def short_intervals(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rendezvous, "RETRY_EVERY_S", 0.05)


def cluster(addresses: Sequence[str], index: int) -> Cluster:
    names = tuple(f"worker {i}" for i in range(len(addresses)))
    return Cluster(tuple(addresses), names, index)


def connect_workers(
    workers: Cluster, timeout_s: float, report: Callable[[str], None]
) -> dict[int, Channel]:
    meeting = rendezvous.meet(of_cluster(workers), timeout_s, report)
    assert meeting.cluster == workers
    return meeting.channels


def place(rank: int, size: int = 3, **about: Any) -> Group:
    about = {"chief_host": "127.0.0.1", "job": f"{os.getpid()}", **about}
    return of_place(Place(engine="Test", found_by="RANK", rank=rank, size=size, **about))


def free_addresses(count: int, host: str = "127.0.0.1") -> list[str]:
    ports: set[int] = set()
    while len(ports) < count:
        ports.add(free_port())
    return [f"{host}:{port}" for port in ports]


def meet(groups: Sequence[Group], timeout_s: float) -> list[Any]:
    """Lets groups' workers meet in threads; returns the result or the error of each."""
    results: dict[int, Any] = {}

    def run(number: int, group: Group) -> None:
        try:
            results[number] = rendezvous.meet(group, timeout_s, lambda _: None)
        except Exception as error:
            results[number] = error

    threads = [threading.Thread(target=run, args=each) for each in enumerate(groups)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return [results[number] for number in range(len(groups))]


def connect(addresses: Sequence[str], present: Sequence[int], timeout_s: float) -> list[object]:
    """Runs the present workers in threads; returns the channels or the error of each."""
    results: dict[int, object] = {}

    def run(index: int) -> None:
        try:
            results[index] = connect_workers(cluster(addresses, index), timeout_s, lambda _: None)
        except Exception as error:
            results[index] = error

    threads = [threading.Thread(target=run, args=(index,)) for index in present]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return [results[index] for index in present]


def are_connected(results: Sequence[object]) -> bool:
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


def listen_like_tensorflow(address: str) -> socket.socket:
    """Listens at an address as TensorFlow does once all workers are connected."""
    return socket.create_server(("", port(address)), family=socket.AF_INET6, dualstack_ipv6=True)


def port(address: str) -> int:
    return int(address.rpartition(":")[2])


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]"])
def test_workers_that_are_all_present_are_connected(host: str) -> None:
    if host == "[::1]" and not socket.has_dualstack_ipv6():
        pytest.skip("this machine has no IPv6")
    assert are_connected(connect(free_addresses(3, host), [0, 1, 2], timeout_s=30))


def test_one_worker_alone_waits_for_no_other() -> None:
    assert connect(free_addresses(1), [0], timeout_s=30) == [{}]


@pytest.mark.parametrize("missing", [[1, 3], [0, 2]])
def test_every_waiting_worker_names_all_missing_ones(missing: list[int]) -> None:
    addresses = free_addresses(4)
    present = [index for index in range(4) if index not in missing]
    for error in connect(addresses, present, timeout_s=0.5):
        assert isinstance(error, MissingWorkers)
        names = ", ".join(f"worker {index} ({addresses[index]})" for index in missing)
        assert f"waited 0.5 s for {names}: " in str(error)
        assert "--startup_timeout_s" in str(error)


@pytest.mark.parametrize(
    ("answer", "is_open"),
    [
        (b"\0\0\x18\4\0\0\0\0\0", False),  # TensorFlow's greeting
        (b"[]\n", False),
        (b"", False),
        (b"", True),  # frozen
    ],
)
def test_a_chief_of_an_earlier_start_does_not_count(
    answer: bytes, is_open: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rendezvous, "ANSWER_TIMEOUT_S", 0.2)
    addresses = free_addresses(2)
    with contextlib.ExitStack() as connections, listen_like_tensorflow(addresses[0]) as chief:
        has_ended = threading.Event()

        def serve() -> None:
            while not has_ended.is_set():
                connection = chief.accept()[0]
                with contextlib.suppress(OSError):
                    connection.sendall(answer)
                if is_open:
                    connections.enter_context(connection)
                else:
                    connection.close()

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        (error,) = connect(addresses, [1], timeout_s=0.5)
        has_ended.set()
        socket.create_connection(("127.0.0.1", port(addresses[0]))).close()
        thread.join(10)
    assert isinstance(error, MissingWorkers)
    assert f"worker 0 ({addresses[0]})" in str(error)
    assert are_connected(connect(addresses, [0, 1], timeout_s=30)), "once it has ended"


def test_an_old_worker_does_not_count_but_the_new_one_at_its_address_does() -> None:
    addresses = free_addresses(3)
    with listen_like_tensorflow(addresses[1]):
        errors = connect(addresses, [0, 2], timeout_s=0.5)
    for error in errors:
        assert isinstance(error, MissingWorkers)
        assert f"for worker 1 ({addresses[1]}): " in str(error)
    assert are_connected(connect(addresses, [0, 1, 2], timeout_s=30))


def test_a_worker_that_gives_up_is_not_missing_and_may_come_again() -> None:
    addresses = free_addresses(4)
    results: list[object] = []
    chief = threading.Thread(target=lambda: results.extend(connect(addresses, [0], timeout_s=60)))
    chief.start()
    names = [f"worker {index} ({address})" for index, address in enumerate(addresses)]
    for present, missing in ((1, f"{names[2]}, {names[3]}"), (3, names[2]), (3, names[2])):
        (error,) = connect(addresses, [present], timeout_s=0.5)
        assert f" for {missing}: " in str(error), "the chief sends who is missing"
    results_of_others = connect(addresses, [1, 2, 3], timeout_s=30)
    chief.join(30)
    assert are_connected([*results, *results_of_others])


NESTED = b"[" * 8000 + b"\n"  # deeper than Python's parser goes


def test_connections_without_a_hello_do_not_take_all_descriptors(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(rendezvous, "HELLO_TIMEOUT_S", 0.3)
    addresses, results = free_addresses(2), []
    chief = threading.Thread(target=lambda: results.extend(connect(addresses, [0], timeout_s=30)))
    chief.start()
    wait_until(lambda: ports.accepts(addresses[0]), 10, "the chief listens")
    with socket.create_connection(("127.0.0.1", port(addresses[0])), timeout=10) as silent:
        assert silent.recv(1) == b"", "it is closed while the chief waits"
    assert results == []
    (result,) = connect(addresses, [1], timeout_s=30)
    chief.join(30)
    assert are_connected([*results, result])


def test_strangers_and_workers_of_another_cluster_are_refused() -> None:
    addresses = free_addresses(2)
    results: list[object] = []
    chief = threading.Thread(target=lambda: results.extend(connect(addresses, [0], timeout_s=30)))
    chief.start()
    wait_until(lambda: ports.accepts(addresses[0]), 10, "the chief listens")
    chief_address = ("127.0.0.1", port(addresses[0]))
    with socket.create_connection(chief_address) as silent_stranger:
        for data in (
            b"GET / HTTP/1.0\r\n\r\n",
            b"\0" * 100_000,
            NESTED,
            b'{"hello": 7}\n',
            b"{}\n",
        ):
            with socket.create_connection(chief_address, timeout=10) as stranger:
                stranger.sendall(data)
                with contextlib.suppress(ConnectionResetError):
                    assert b"refused" in stranger.recv(1000)
        other_cluster = [addresses[0], *free_addresses(1)]
        (error,) = connect(other_cluster, [1], timeout_s=0.5)
        assert "refuses this worker: the chief's TF_CONFIG lists other workers" in str(error)
        (result,) = connect(addresses, [1], timeout_s=30)
        chief.join(30)
        assert are_connected([*results, result])
        assert silent_stranger.recv(1) == b"", "its connection is closed"


def test_a_late_worker_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    addresses, has_reported = free_addresses(2), threading.Event()
    reports: list[str] = []

    def report(text: str) -> None:
        reports.append(text)
        has_reported.set()

    clock = time.monotonic
    monkeypatch.setattr(rendezvous.time, "monotonic", lambda: 50 * clock())  # 5 s pass in 0.1 s
    results: list[object] = []
    early = threading.Thread(
        target=lambda: results.append(connect_workers(cluster(addresses, 0), 5000, report)),
        daemon=True,
    )
    early.start()
    assert has_reported.wait(60)
    late = connect_workers(cluster(addresses, 1), 5000, lambda _: None)
    early.join(60)
    assert are_connected([*results, late])
    assert reports == [f"waiting for worker 1 ({addresses[1]}), for at most 5000 s"]


def test_a_port_in_use_is_an_error() -> None:
    addresses = free_addresses(2)
    with (
        listen_like_tensorflow(addresses[0]),
        pytest.raises(OSError, match="in use"),
    ):
        connect_workers(cluster(addresses, 0), 50, lambda _: None)


def test_the_port_is_free_afterwards() -> None:
    addresses = free_addresses(2)
    results = connect(addresses, [0, 1], timeout_s=30)
    for address in addresses:  # TensorFlow listens there next, while the connections stay open
        listen_like_tensorflow(address).close()
    assert are_connected(results)
    with pytest.raises(MissingWorkers):
        connect_workers(cluster(addresses, 0), 0.1, lambda _: None)
    listen_like_tensorflow(addresses[0]).close()


def test_a_connection_to_itself_is_no_other_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    """TCP connects a socket to itself if source and destination port happen to be the same."""
    (address,) = free_addresses(1)

    def connect_to_itself(_: object, timeout: float) -> socket.socket:
        connection = socket.socket()
        connection.bind(("127.0.0.1", port(address)))
        connection.connect(("127.0.0.1", port(address)))
        return connection

    monkeypatch.setattr(socket, "create_connection", connect_to_itself)
    assert not ports.accepts(address)


def assert_met(results: Sequence[Any]) -> list[str]:
    """Whether all have the same cluster, each its index, and connections; returns addresses."""
    clusters = [meeting.cluster for meeting in results]
    assert [met.index for met in clusters] == list(range(len(results)))
    assert len({met.addresses for met in clusters}) == 1
    assert are_connected([meeting.channels for meeting in results])
    return list(clusters[0].addresses)


@pytest.mark.parametrize("chief_host", ["127.0.0.1", "localhost", "::1"])
def test_workers_tell_each_other_their_addresses(chief_host: str) -> None:
    if chief_host == "::1" and not socket.has_dualstack_ipv6():
        pytest.skip("this machine has no IPv6")
    addresses = assert_met(meet([place(rank, chief_host=chief_host) for rank in range(3)], 30))
    assert len(set(addresses)) == 3
    for address in addresses:  # TensorFlow listens there next
        listen_like_tensorflow(address).close()


def test_a_long_list_of_addresses_arrives_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rendezvous, "ADDRESSES_A_MESSAGE", 2)
    addresses = assert_met(meet([place(rank, 5) for rank in range(5)], 60))
    assert len(set(addresses)) == 5


def test_the_chief_takes_the_next_port_if_another_job_has_the_first() -> None:
    first = place(0).chief_addresses[0]
    with socket.create_server(("", port(first))) as taken:
        taken.settimeout(0.1)
        assert_met(meet([place(rank) for rank in range(3)], 30))


def test_the_chief_of_another_job_is_not_taken_for_ours() -> None:
    """It listens at the port where our workers look first."""
    about: dict[str, Any] = {"size": 2, "chief_port": free_port()}
    other, ours = (
        [place(rank, job=job, **about) for rank in range(2)] for job in ("other", "ours")
    )
    results: list[Any] = []
    thread = threading.Thread(target=lambda: results.extend(meet(other[:1], 4)))
    thread.start()
    wait_until(lambda: ports.accepts(other[0].chief_addresses[0]), 10, "it listens")
    (refused,) = meet(ours[1:], 0.5)
    assert "refuses this worker: it is the chief of another job" in str(refused)
    assert_met(meet(ours, 30))
    thread.join()
    assert isinstance(results[0], MissingWorkers)


def test_a_name_that_does_not_resolve_is_waited_for_and_said() -> None:
    (error,) = meet([place(1, chief_host="worker-0.mine.invalid")], 0.5)
    assert isinstance(error, MissingWorkers)
    assert "worker 0 (on worker-0.mine.invalid) (its name: " in str(error)
    assert "TF_CONFIG" not in str(error)


@pytest.mark.parametrize(
    ("ends", "hosts"),
    [
        ({1: ("127.0.0.1", "127.0.0.1")}, ["127.0.0.1", "127.0.0.1"]),
        ({1: ("10.0.0.1", "10.0.0.2")}, ["10.0.0.1", "10.0.0.2"]),
        (
            {1: ("127.0.1.1", "127.0.0.1"), 2: ("10.0.0.1", "10.0.0.2")},
            ["10.0.0.1"] * 2 + ["10.0.0.2"],
        ),
        ({1: ("::1", "::1"), 2: ("fd00::1", "fd00::2")}, ["fd00::1", "fd00::1", "fd00::2"]),
    ],
)
def test_addresses_are_those_that_all_can_reach(
    ends: dict[int, tuple[str, str]], hosts: list[str]
) -> None:
    assert list(rendezvous.reachable_hosts(0, ends).values()) == hosts
