"""How the client gets to servers: several of them, TLS, headers, interceptors, forks."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from serving.client import (
    Client,
    InvalidInput,
    NotFound,
    NotReady,
    PermissionDenied,
    Tls,
    Unavailable,
)
from serving.client.load_balancing import LoadBalancer
from tests.running import Process, free_port, wait_until
from tests.serving.callers import Callers
from tests.serving.keys import make_keys
from tests.serving.scripted_server import Server, echo, refusal, signatures, states

X = {"x": np.arange(4.0)}


@pytest.fixture
def servers() -> Iterator[list[Server]]:
    servers = [Server() for _ in range(3)]
    for server in servers:
        server.answers = {"Predict": echo, "GetModelStatus": states((1, "AVAILABLE", ""))}
    yield servers
    for server in servers:
        server.stop()


def test_replicas_take_turns_and_the_dead_are_left_out_for_a_while():
    now = [100.0]
    replicas = LoadBalancer(["a", "b", "c"], lambda: now[0])
    assert sorted(replicas.pick(()) for _ in range(6)) == [0, 0, 1, 1, 2, 2]
    replicas.record_failure(1)
    assert {replicas.pick(()) for _ in range(6)} == {0, 2}
    assert {replicas.pick({0}) for _ in range(3)} == {2}
    assert replicas.pick({0, 2}) == 1  # better than one that is known to fail
    now[0] += 0.6
    assert {replicas.pick(()) for _ in range(3)} == {0, 1, 2}
    replicas.record_failure(1)
    now[0] += 0.6  # longer each time
    assert {replicas.pick(()) for _ in range(6)} == {0, 2}
    replicas.record_success(1)
    assert {replicas.pick(()) for _ in range(3)} == {0, 1, 2}


def test_calls_go_to_all_targets_and_all_addresses_of_a_name(servers: list[Server]):
    targets = [server.target for server in servers]
    with Client(targets, check=False) as client:
        for _ in range(12):
            client.predict("m", X)
        assert [len(server.calls) for server in servers] == [4, 4, 4]
        assert client.wait_until_ready("m").version == 1
        with pytest.raises(InvalidInput, match="3 targets: make a client for each"):
            client.reload("")
    for server in servers:
        server.calls.clear()
    with Client("ipv4:" + ",".join(targets), check=False) as client:
        for _ in range(30):
            client.predict("m", X)
    assert all(server.calls for server in servers)


REPLICA = """
from tests.serving.scripted_server import Server, echo
server = Server()
server.answers["Predict"] = echo
print(server.target, flush=True)
server.wait()
"""


@pytest.mark.parametrize("as_list", [True, False], ids=["list", "addresses"])
def test_no_call_fails_when_a_replica_is_killed(as_list: bool):
    with contextlib.ExitStack() as stack:
        command = ["python", "-c", REPLICA]
        replicas = [stack.enter_context(Process(command, limit_s=60)) for _ in range(3)]
        targets = [replica.wait_for(r"127\.0\.0\.1:\d+")[0] for replica in replicas]
        client = Client(targets if as_list else "ipv4:" + ",".join(targets), check=False)
        with Callers(client, lambda client: client.predict("m", X) and None) as callers:
            callers.went_on()
            replicas[1].kill()
            callers.went_on(300)


def test_a_replica_that_is_back_gets_calls_again(servers: list[Server]):
    port = free_port()
    targets = [servers[0].target, f"127.0.0.1:{port}"]
    with Client(targets, check=False) as client:
        for _ in range(4):
            client.predict("m", X)
        late = Server(port=port)
        late.answers["Predict"] = echo

        def asked() -> bool:
            client.predict("m", X)
            return bool(late.calls)

        wait_until(asked, 20, "the second replica is called")
        late.stop()
    assert len(servers[0].calls) > 4


def test_nobody_there_fails_after_a_bounded_number_of_tries():
    targets = [f"127.0.0.1:{free_port()}" for _ in range(2)]
    start = time.monotonic()
    with Client(targets, check=False) as client:
        with pytest.raises(Unavailable, match=r"127\.0\.0\.1:\d+ failed.*refused.*listens"):
            client.predict("m", X)
        assert time.monotonic() - start < 8
        with pytest.raises(NotReady, match=r"after 0\.5 s.*refused"):
            client.wait_until_ready("m", timeout_s=0.5)
    with (
        Client(targets, check=False, retries=0) as client,
        pytest.raises(Unavailable, match="refused"),
    ):
        client.predict("m", X)


FORKS = """
import os, sys
import numpy as np
from serving.client import Client
from tests.serving.scripted_server import Server, echo

client = Client(sys.argv[1])
unused = Client(sys.argv[1])
x = np.zeros((1, 3), np.float32)

def ask(client):
    assert client.predict("m", {"x": x})["x"].shape == (1, 3)

ask(client)
for ends in (os._exit, sys.exit):
    child = os.fork()
    if child == 0:
        for each in (client, unused):
            ask(each)
        client.close()
        print("child is done", flush=True)
        ends(0)
    assert os.waitpid(child, 0)[1] == 0
    ask(client)
client.close()
"""


def test_a_forked_process_has_connections_of_its_own(servers: list[Server]):
    servers[0].answers["GetModelMetadata"] = signatures(x=1)
    with Process(["python", "-c", FORKS, servers[0].target], limit_s=60) as process:
        assert process.wait().count("child is done") == 2


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("keys")
    make_keys(folder, server="DNS:server.test", client="DNS:client.test")
    return folder


@pytest.fixture
def secure(keys: Path) -> Iterator[Server]:
    """Wants to see a certificate."""
    pair = ((keys / "server.key").read_bytes(), (keys / "server.pem").read_bytes())
    trusted = (keys / "ca.pem").read_bytes()
    server = Server(grpc.ssl_server_credentials([pair], trusted, require_client_auth=True))
    server.answers = {"Predict": echo}
    yield server
    server.stop()


def test_tls_on_both_sides_and_a_token(secure: Server, keys: Path):
    as_paths = Tls(keys / "ca.pem", str(keys / "client.pem"), keys / "client.key", "server.test")
    as_bytes = Tls(
        *((keys / name).read_bytes() for name in ("ca.pem", "client.pem", "client.key")),
        server_name="server.test",
    )
    for tls in (as_paths, as_bytes):
        with Client(secure.target, tls=tls, token="s3cret", check=False) as client:
            client.predict("m", X)
        assert secure.metadata["authorization"] == "Bearer s3cret"
    assert b"PRIVATE" not in repr(as_bytes).encode()


def test_who_is_not_trusted_is_not_called(secure: Server, keys: Path):
    for tls in (
        Tls(keys / "ca.pem", server_name="server.test"),  # shows no certificate
        Tls(keys / "ca.pem", keys / "client.pem", keys / "client.key", "other.test"),
        Tls(keys / "client.pem", keys / "client.pem", keys / "client.key", "server.test"),
        False,
    ):
        with (
            Client(secure.target, tls=tls, check=False, retries=0) as client,
            pytest.raises(Unavailable),
        ):
            client.predict("m", X, timeout_s=5)
    assert secure.calls == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(target=[]), "target"),
        (dict(target=""), "target"),
        (dict(target=[1]), "target"),
        (dict(retries=-1), "retries=-1"),
        (dict(token="s3cret"), "plain text: give tls=True"),
        (dict(token="s3cret\n", tls=True), "'authorization'.*printable ASCII"),
        (dict(metadata={"a b": "s3cret"}), "'a b'"),
        (dict(metadata={"a": b"s3cret"}), "-bin"),
        (dict(metadata={"a-bin": "s3cret"}), "-bin"),
        (dict(tls=Tls("/no/such/file")), "/no/such/file can't be read"),
    ],
)
def test_what_a_client_can_not_be_made_of(arguments: dict[str, Any], message: str):
    with pytest.raises(InvalidInput, match=message) as caught:
        Client(**{"target": "127.0.0.1:1", **arguments})
    assert "s3cret" not in str(caught.value)
    with pytest.raises(InvalidInput, match="go together"):
        Tls(private_key=b"s3cret")


def test_metadata_goes_along_and_is_in_no_message(servers: list[Server]):
    server = servers[0]
    metadata: dict[str, str | bytes] = {"X-Tenant": "s3cret", "blob-bin": b"\0\xff"}
    with Client(server.target, metadata=metadata, check=False) as client:
        client.predict("m", X)
        assert server.metadata["x-tenant"] == "s3cret"
        assert server.metadata["blob-bin"] == b"\0\xff"
        server.answers["Predict"] = refusal(grpc.StatusCode.UNAUTHENTICATED, "who are you?")
        with pytest.raises(PermissionDenied) as caught:
            client.predict("m", X)
        assert "s3cret" not in f"{caught.value}{client!r}{vars(client)}"


def test_interceptors_see_every_call(servers: list[Server]):
    class Interceptor(grpc.UnaryUnaryClientInterceptor):
        def __init__(self) -> None:
            self.seen: list[tuple[str, type[Any]]] = []

        def intercept_unary_unary(self, go_on: Any, details: Any, request: Any) -> Any:
            self.seen.append((details.method.rpartition("/")[2], type(request)))
            return go_on(details, request)

    interceptor = Interceptor()
    with Client(servers[0].target, interceptors=[interceptor], check=False) as client:
        client.predict("m", X)
        servers[0].answers["Predict"] = refusal(grpc.StatusCode.NOT_FOUND, "gone")
        with pytest.raises(NotFound, match="gone"):
            client.predict("m", X)
        client.status("m")
    assert interceptor.seen == [("Predict", bytes)] * 2 + [("GetModelStatus", bytes)]
