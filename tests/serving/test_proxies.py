"""Which calls go by way of a proxy, and what errors report about it."""

from __future__ import annotations

import re
import socket
import socketserver
import threading
from collections.abc import Iterator

import grpc
import numpy as np
import pytest

from serving.client import Client, NotFound, Unavailable, proxies
from tests.serving.scripted_server import Server, echo, refusal

X = {"x": np.arange(4.0)}
VARIABLES = ["grpc_proxy", "https_proxy", "http_proxy", "no_grpc_proxy", "no_proxy", "NO_PROXY"]


class Proxy(socketserver.ThreadingTCPServer):
    """An HTTP proxy for CONNECT; for it, each name is this machine's."""

    daemon_threads = True
    block_on_close = False

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Tunnel)
        self.asked_for: list[str] = []
        self.headers: list[str] = []
        self.answer = "200 OK"
        self.url = f"http://user:s3cret@127.0.0.1:{self.server_address[1]}"
        threading.Thread(target=self.serve_forever, daemon=True).start()


class _Tunnel(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        proxy = self.server
        assert isinstance(proxy, Proxy)
        proxy.asked_for.append(self.rfile.readline().split()[1].decode())
        while (line := self.rfile.readline().strip()) != b"":
            proxy.headers.append(line.decode())
        self.wfile.write(f"HTTP/1.1 {proxy.answer}\r\n\r\n".encode())
        if proxy.answer != "200 OK":
            return
        port = int(proxy.asked_for[-1].rpartition(":")[2])
        with socket.create_connection(("127.0.0.1", port)) as far:
            back = threading.Thread(target=_pump, args=(far, self.connection), daemon=True)
            back.start()
            _pump(self.connection, far)


def _pump(source: socket.socket, target: socket.socket) -> None:
    try:
        while data := source.recv(65536):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)
    except OSError:
        pass


@pytest.fixture
def proxy(monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    for variable in VARIABLES:
        monkeypatch.delenv(variable, raising=False)
    with Proxy() as proxy:
        monkeypatch.setenv("https_proxy", proxy.url)
        yield proxy
        proxy.shutdown()


@pytest.fixture
def servers() -> Iterator[list[Server]]:
    servers = [Server(), Server()]
    for server in servers:
        server.answers["Predict"] = echo
    yield servers
    for server in servers:
        server.stop()


def test_replicas_behind_a_proxy_and_errors_that_name_it(proxy: Proxy, servers: list[Server]):
    targets = [f"dns:///one.test:{servers[0].port}", f"two.test:{servers[1].port}"]
    where = re.escape(f"http://127.0.0.1:{proxy.server_address[1]} (https_proxy)")
    with Client(targets, check=False) as client:
        for _ in range(4):
            client.predict("m", X)
        assert [len(server.calls) for server in servers] == [2, 2]  # the proxy resolves the names
        asked_for = {target.removeprefix("dns:///") for target in targets}
        assert set(proxy.asked_for) == asked_for
        assert any(line.startswith("Proxy-Authorization: Basic ") for line in proxy.headers)
        for server in servers:
            server.answers["Predict"] = refusal(grpc.StatusCode.NOT_FOUND, "gone")
        with pytest.raises(
            NotFound, match=rf"test:\d+ by way of the proxy {where} failed"
        ) as found:
            client.predict("m", X)
        assert "no_proxy" not in str(found.value)  # the server answered
    proxy.answer = "403 Forbidden"
    with (
        Client("three.test:8500", check=False, retries=0) as client,
        pytest.raises(Unavailable, match=rf"{where} failed.*403.*no_proxy") as caught,
    ):
        client.predict("m", X)
    assert "s3cret" not in f"{caught.value}{vars(caught.value)}{client._connection}"


def test_this_machine_is_never_called_by_a_proxy(proxy: Proxy, servers: list[Server]):
    port = servers[0].port
    for target in (
        *(servers[0].target, f"localhost:{port}", f"dns:///localhost:{port}"),
        ",".join(["ipv4:" + servers[0].target, servers[1].target]),
    ):
        with Client(target, check=False) as client:
            client.predict("m", X)
    assert proxy.asked_for == []


def test_an_exception_that_grpc_does_not_understand_counts(
    proxy: Proxy, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("NO_PROXY", "*")
    with (
        Client("replica.invalid:1", check=False, retries=0) as client,
        pytest.raises(Unavailable) as caught,
    ):
        client.predict("m", X)
    assert proxy.asked_for == [] and "proxy" not in str(caught.value)


@pytest.mark.parametrize(
    ("target", "no_proxy"),
    [
        ("replica.example.com:8500", "replica.example.com"),
        ("Replica.Example.com:8500", "other, example.COM"),
        ("replica.example.com:8500", ".example.com"),
        ("replica.example.com:8500", "*.example.com"),
        ("example.com:8500", ".example.com"),
        ("dns:///replica.example.com:8500", "replica.example.com:8500"),
        ("dns://8.8.8.8/replica:8500", "replica"),
        ("dns:replica:8500", "replica"),
        ("replica:8500", "*"),
        ("replica", "replica"),
        ("10.1.2.3:8500", "10.1.2.3"),
        ("10.1.2.3:8500", "10.0.0.0/8"),
        ("10.1.2.3:8500", "192.168.0.0/16 10.1.2.3:8500"),
        ("ipv4:10.1.2.3:8500,10.1.2.4:8500", "10.1.0.0/16"),
        ("[fd00::1]:8500", "fd00::1"),
        ("ipv6:[fd00::1]:8500", "[fd00::1]:8500"),
        ("[fd00::1]:8500", "fd00::/8"),
        ("[fd00::1]:8500", "fd00:0::1"),
        *((target, "") for target in ("127.0.0.1:1", "127.9.9.9:1", "[::1]:1", "localhost:1")),
        *((target, "") for target in ("ipv6:[::1]:1", "unix:/tmp/s", "unix-abstract:s", "::1")),
        ("[::ffff:127.0.0.1]:1", ""),
    ],
)
def test_targets_that_are_called_directly(target: str, no_proxy: str):
    for variable in ("no_grpc_proxy", "no_proxy", "NO_PROXY"):
        environ = {"http_proxy": "http://proxy:3128", variable: no_proxy}
        assert proxies.goes_directly(target, environ)
        assert proxies.proxy_of(target, environ) is None


@pytest.mark.parametrize(
    ("target", "no_proxy"),
    [
        ("replica.example.com:8500", ""),
        ("replica.example.com:8500", "example.org,10.0.0.0/8,localhost,127.0.0.1"),
        ("replica.example.com:8500", "replica.example.com:8501"),
        ("10.1.2.3:8500", "10.1.2.4,10.2.0.0/16,10.1.2.3/nonsense"),
        ("10.1.2.3:8500", "110.1.2.3:8500"),
        ("ipv4:10.1.2.3:8500,10.2.2.4:8500", "10.1.0.0/16"),
        ("ipv4:127.0.0.1:8500,10.2.2.4:8500", ""),
        ("[fd00::1]:8500", "fe80::/10"),
        ("localhost.example.com:8500", "localhost"),
    ],
)
def test_targets_that_are_called_by_a_proxy(target: str, no_proxy: str):
    environ = {"http_proxy": "http://user:s3cret@proxy:3128/", "no_proxy": no_proxy}
    assert proxies.proxy_of(target, environ) == "http://proxy:3128 (http_proxy)"


@pytest.mark.parametrize(
    ("environ", "proxy"),
    [
        ({}, None),
        (dict(http_proxy="http://a:1"), "http://a:1 (http_proxy)"),
        (dict(http_proxy="http://a:1", https_proxy="http://b:1"), "http://b:1 (https_proxy)"),
        (dict(https_proxy="http://b:1", grpc_proxy="http://c:1"), "http://c:1 (grpc_proxy)"),
        (dict(https_proxy="http://b:1", grpc_proxy=""), None),  # an empty one switches it off
        (dict(http_proxy="https://a:1"), None),
        (dict(http_proxy="a:1"), None),
        (dict(http_proxy=" http://a:1"), None),
        (dict(HTTPS_PROXY="http://a:1"), None),
        (dict(http_proxy="http://a:1", no_grpc_proxy="b", no_proxy="*"), "http://a:1 (http_proxy)"),
    ],
)
def test_the_variable_that_grpc_takes(environ: dict[str, str], proxy: str | None):
    assert proxies.proxy_of("replica:8500", environ) == proxy
