"""A name whose addresses change while a client calls: a headless service that is scaled."""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from serving.client import AsyncClient, Client, InvalidInput, Tls, Unavailable, resolving
from serving.client.resolving import Addresses, Resolver
from tests.running import Process, free_port, wait_until
from tests.serving.callers import Callers
from tests.serving.keys import make_keys
from tests.serving.scripted_server import Server, echo

X = {"x": np.arange(4.0)}
NAME = "replicas.test"


class Names:
    """What the name resolves to, in place of a DNS server: ``getaddrinfo`` reads it."""

    def __init__(self) -> None:
        self.addresses: list[str] = []
        self.looks = 0

    def getaddrinfo(self, host: str, port: int, *args: Any, **options: Any) -> list[Any]:
        assert host in (NAME, "localhost")
        self.looks += 1
        if not self.addresses:
            raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
        return [
            (socket.AF_INET6 if ":" in a else socket.AF_INET, socket.SOCK_STREAM, 6, "", (a, port))
            for a in self.addresses
        ]


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> Names:
    names = Names()
    monkeypatch.setattr(socket, "getaddrinfo", names.getaddrinfo)
    monkeypatch.setattr(resolving, "LOOK_EVERY_S", 0.05)
    monkeypatch.setattr(resolving, "LOOK_AFTER_FAILURE_S", 0.01)
    return names


@pytest.fixture
def replicas() -> Iterator[Callable[[str], Server]]:
    port = free_port()
    with contextlib.ExitStack() as stack:

        def start(host: str, credentials: grpc.ServerCredentials | None = None) -> Server:
            server = Server(credentials, port, host)
            server.answers["Predict"] = echo
            stack.callback(server.stop)
            return server

        yield start


def ask(client: Client) -> None:
    client.predict("m", X)


def test_a_replica_that_is_new_gets_calls_and_one_that_is_gone_fails_none(
    names: Names, replicas: Callable[[str], Server]
):
    first, second = replicas("127.0.0.1"), replicas("127.0.0.2")
    names.addresses = ["127.0.0.1"]
    client = Client(f"dns:///{NAME}:{first.port}", check=False)
    with contextlib.suppress(Exception):  # gRPC itself does not find the name
        client.predict("m", X)
    names.addresses = ["127.0.0.1", "127.0.0.2"]
    wait_until(lambda: ask(client) or (first.calls and second.calls), 20, "both are called")
    with Callers(client, ask, pause_s=0.001) as callers:
        callers.went_on()
        third = replicas("[::1]")
        names.addresses = ["127.0.0.2", "::1"]
        wait_until(lambda: third.calls, 20, "the third is called")

        def is_left_out() -> bool:
            before = len(first.calls)
            callers.went_on(30)
            return len(first.calls) == before

        wait_until(is_left_out, 20, "the first is called no more")
        first.stop()
        names.addresses = []  # nobody answers: the last addresses stay
        looks = names.looks
        wait_until(lambda: names.looks > looks + 2, 20, "the name is asked for again")
        callers.went_on()
        second.calls.clear()
        third.calls.clear()
        callers.went_on(30)
        assert second.calls and third.calls


def test_asyncio_follows_too_when_all_replicas_move(
    names: Names, replicas: Callable[[str], Server]
):
    old = [replicas("127.0.0.1"), replicas("127.0.0.2")]
    names.addresses = ["127.0.0.1", "127.0.0.2"]

    async def main() -> None:
        async with AsyncClient(f"{NAME}:{old[0].port}", check=False) as client:
            while not all(server.calls for server in old):
                await client.predict("m", X)
            new = [replicas("127.0.0.3"), replicas("127.0.0.4")]
            names.addresses = ["127.0.0.3", "127.0.0.4"]
            for server in old:
                server.stop()
            while not all(server.calls for server in new):
                await client.predict("m", X)

    asyncio.run(asyncio.wait_for(main(), 30))


def test_a_call_under_way_ends_in_the_channel_in_which_it_began(
    names: Names, replicas: Callable[[str], Server]
):
    begun, release = threading.Event(), threading.Event()

    def slow(data: bytes, context: grpc.ServicerContext) -> bytes:
        begun.set()
        assert release.wait(20)
        return echo(data, context)

    old, new = replicas("127.0.0.1"), replicas("127.0.0.2")
    names.addresses = ["127.0.0.1", "127.0.0.9"]  # nobody is at the second

    async def main() -> None:
        async with AsyncClient(f"{NAME}:{old.port}", check=False) as client:
            while not old.calls:
                await client.predict("m", X)
            old.answers["Predict"] = slow
            under_way = asyncio.ensure_future(client.predict("m", X))
            assert await asyncio.to_thread(begun.wait, 10)
            names.addresses = ["127.0.0.2", "127.0.0.9"]
            old.answers["Predict"] = echo
            while not new.calls:
                await client.predict("m", X)
            assert not under_way.done()
            release.set()
            np.testing.assert_array_equal((await under_way)["x"], X["x"])

    asyncio.run(asyncio.wait_for(main(), 30))


def test_a_name_that_exists_later_is_found_soon(names: Names, replicas: Callable[[str], Server]):
    server = replicas("127.0.0.2")
    with Client(f"{NAME}:{server.port}", check=False, retries=0) as client:
        for _ in range(3):
            with pytest.raises(Unavailable, match="can be resolved"):
                client.predict("m", X)
        names.addresses = ["127.0.0.2"]

        def is_answered() -> bool:
            with contextlib.suppress(Unavailable):
                client.predict("m", X)
            return bool(server.calls)

        wait_until(is_answered, 10, "the server is called")


def test_what_grpc_finds_too_is_not_connected_again(
    names: Names, replicas: Callable[[str], Server]
):
    peers = set()

    def answer(data: bytes, context: grpc.ServicerContext) -> bytes:
        peers.add(context.peer())
        return echo(data, context)

    server, other = replicas("127.0.0.1"), replicas("127.0.0.2")
    server.answers["Predict"] = answer
    names.addresses = ["127.0.0.1", "127.0.0.2"]
    with Client(f"localhost:{server.port}", check=False) as client:
        wait_until(lambda: ask(client) or names.looks > 3, 20, "the name is asked for")
    assert len(peers) == 1 and not other.calls


@pytest.mark.parametrize("server_name", [None, "server.test"])
def test_servers_see_the_name_and_certificates_are_for_it(
    names: Names, replicas: Callable[..., Server], tmp_path: Path, server_name: str | None
):
    make_keys(tmp_path, server=f"DNS:{server_name or NAME}", client="DNS:client.test")
    pair = ((tmp_path / "server.key").read_bytes(), (tmp_path / "server.pem").read_bytes())
    servers = [
        replicas(host, grpc.ssl_server_credentials([pair])) for host in ("127.0.0.1", "127.0.0.2")
    ]
    names.addresses = ["127.0.0.1", "127.0.0.2"]
    tls = Tls(tmp_path / "ca.pem", server_name=server_name)
    with Client(f"{NAME}:{servers[0].port}", tls=tls, check=False) as client:
        wait_until(
            lambda: ask(client) or all(server.calls for server in servers), 20, "both are called"
        )


def test_a_name_is_asked_for_at_intervals_and_only_while_there_are_calls(
    names: Names, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(resolving, "LOOK_EVERY_S", 3600)
    monkeypatch.setattr(resolving, "LOOK_AFTER_FAILURE_S", 3600)
    names.addresses = ["10.0.0.1"]
    resolver = Resolver(NAME, 8500)
    assert names.looks == 0
    assert wait_until(resolver.addresses, 10, "it is found") == ("10.0.0.1",)
    names.addresses = ["10.0.0.2"]
    for _ in range(1000):
        assert resolver.addresses() == ("10.0.0.1",)
        resolver.note_failure()
    assert names.looks == 1
    monkeypatch.setattr(resolving, "LOOK_AFTER_FAILURE_S", 0)
    resolver.note_failure()
    wait_until(lambda: resolver.addresses() == ("10.0.0.2",), 10, "it is found after a failure")
    assert names.looks == 2


def test_an_answer_is_complete_unless_addresses_come_back():
    addresses = Addresses()
    for now_s, found, in_use in (
        (0, "ab", "ab"),
        (10, "ba", "ab"),
        (20, "bc", "bc"),  # a is gone
        (900, "abc", "abc"),  # after so long, it is another host's
        (910, "ab", "ab"),
        (930, "bc", "abc"),  # c is back after 20 s: a may come back too
        (969, "b", "abc"),
        (970, "b", "bc"),  # a is missing for twice as long
        (1010, "b", "b"),
    ):
        before = addresses.in_use
        addresses.update({*found}, now_s)
        assert "".join(addresses.in_use) == in_use
        assert (addresses.in_use is before) == (addresses.in_use == before)


@pytest.mark.parametrize("cached_s", [10, 60])
def test_random_answers_come_to_rest(cached_s: int):
    addresses, draw, changes = Addresses(), random.Random(1), 0
    for now_s in range(0, 3600, cached_s):
        before = addresses.in_use
        addresses.update(draw.sample("abcdefgh", 3), now_s)
        changes += addresses.in_use is not before
    assert "".join(addresses.in_use) == "abcdefgh" and changes < 15


STUCK = """
import socket, sys, threading
from serving.client import Client, Unavailable
begun = threading.Event()
def getaddrinfo(*args, **options):
    begun.set()
    threading.Event().wait()
socket.getaddrinfo = getaddrinfo
with Client(f"localhost:{sys.argv[1]}", check=False, retries=0) as client:
    try:
        client.predict("m", {"x": 1.0})
    except Unavailable:
        assert begun.wait(20)
        print("no call waits for it", flush=True)
"""


def test_a_look_that_never_ends_holds_up_neither_calls_nor_the_end_of_the_process():
    with Process(["python", "-c", STUCK, str(free_port())], limit_s=40) as process:
        assert "no call waits" in process.wait()


def test_a_real_name():
    resolver = Resolver("localhost", 8500)
    assert set(wait_until(resolver.addresses, 20, "it is found")) <= {"127.0.0.1", "::1"}


@pytest.mark.parametrize(
    ("addresses", "target"),
    [
        (("10.0.0.1",), "ipv4:10.0.0.1:8500"),
        (("10.0.0.1", "10.0.0.2"), "ipv4:10.0.0.1:8500,10.0.0.2:8500"),
        (("10.0.0.1", "fd00::2"), "ipv6:[::ffff:10.0.0.1]:8500,[fd00::2]:8500"),
    ],
)
def test_addresses_become_one_target(addresses: tuple[str, ...], target: str):
    assert Resolver("name", 8500).target_of(addresses) == target


@pytest.mark.parametrize(
    "target",
    [
        *("127.0.0.1:8500", "[::1]:8500", "::1", "ipv4:10.0.0.1:1,10.0.0.2:1", "ipv6:[::1]:8500"),
        *("unix:8500", "unix:/tmp/x", "unix-abstract:8500", "dns://8.8.8.8/name:8500", "name"),
        *("dns:///127.0.0.1:8500", "xds:///name:8500", "dns:8500"),
    ],
)
def test_other_targets_are_left_to_grpc(target: str):
    assert Resolver.of(target) is None


@pytest.mark.parametrize(
    "target", ["models:8500", "dns:///models.default.svc:8500", "dns:models.default.svc:8500"]
)
def test_names_are_followed(target: str):
    resolver = Resolver.of(target)
    assert resolver is not None
    assert resolver.authority.startswith("models") and resolver.authority.endswith(":8500")


@pytest.mark.parametrize(
    ("target", "problem"),
    [
        ("http://models:8500", "leave out http://"),
        ("https://models:8500", "leave out https://; tls=True encrypts"),
        ("grpc://models:8500", "leave out grpc://"),
        ("models:8500/v1/models/m", "it has '/'"),
        ("one:8500,two:8500", "several addresses are a list"),
        ("models:8500\n", r"it has '\\n'"),
        ("127.0.0.1:99999", "at most 65535"),
        ("dns:///models:65536", "at most 65535"),
    ],
)
def test_what_is_no_target_is_refused(target: str, problem: str):
    with pytest.raises(InvalidInput, match=f"has to be host:port.*{problem}"):
        Client(["models:8500", target])


@pytest.mark.parametrize(
    "target",
    [
        *("models", "Models.Default.svc.cluster.local.:8500", "[::1]:65535", "::1", "models:grpc"),
        *("unix:/tmp/a,b c:99999", "unix:///tmp/s", "ipv4:10.0.0.1:1,10.0.0.2:1", "xds:///m"),
        *("dns://8.8.8.8/models:8500", "[fe80::1%eth0]:8500", "vsock:3:99999"),
    ],
)
def test_targets_in_grpcs_forms_are_accepted(target: str):
    Client(target).close()
