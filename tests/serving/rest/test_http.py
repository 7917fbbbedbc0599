"""The HTTP port in this process: Python's HTTP client, and connections that misbehave."""

from __future__ import annotations

import gzip
import http.client
import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import pytest

from serving.server.deadlines import TimeLeft
from serving.server.rest import http_server
from serving.server.rest.http_server import HttpServer


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[HttpServer]:
    monkeypatch.setattr(http_server, "_MAX_BODY_BYTES", 1000)
    monkeypatch.setattr(http_server, "_MAX_HELD_BYTES", 1500)
    monkeypatch.setattr(http_server, "_MAX_WAITING", 0)
    server = HttpServer("127.0.0.1", 0)
    server.start(num_threads=1, timeout_s=30.0, has_cors=True)
    yield server
    server.stop(1.0)


def ask(
    server: HttpServer, method: str, path: str, body: bytes = b"", **headers: str
) -> tuple[int, http.client.HTTPMessage, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    connection.request(method, path, body, named)
    response = connection.getresponse()
    text = response.read()
    connection.close()
    return response.status, response.headers, text


def test_bodies_that_are_too_large_or_not_compressed_as_said(server: HttpServer):
    server.set_answer(lambda method, path, body, time_left_s: (200, b"%d" % len(body)))
    path = "/v1/models/m:predict"
    assert ask(server, "POST", path, b"x" * 1000)[2] == b"1000"
    for body, encoding in ((b"x" * 1001, "identity"), (gzip.compress(b"x" * 10**6), "gzip")):
        status, _, text = ask(server, "POST", path, body, Content_Encoding=encoding)
        assert (status, list(json.loads(text))) == (413, ["error"])
    status, _, text = ask(server, "POST", path, b"not gzip", Content_Encoding="gzip")
    assert (status, list(json.loads(text))) == (400, ["error"])


@pytest.mark.parametrize(("timeout_s", "is_limited"), [(30.0, True), (0.0, False)])
def test_calls_have_the_time_that_is_left(timeout_s: float, is_limited: bool):
    server = HttpServer("127.0.0.1", 0)
    server.start(num_threads=1, timeout_s=timeout_s)
    left_s: list[float | None] = []

    def answer(method: str, path: str, body: bytes, time_left_s: TimeLeft) -> tuple[int, bytes]:
        left_s.append(time_left_s())
        return 200, b"{}"

    server.set_answer(answer)
    ask(server, "GET", "/v1/models/m")
    server.stop(1.0)
    (left,) = left_s
    assert (left is not None and 0 < left <= 30) if is_limited else left is None


def test_a_port_that_is_taken(server: HttpServer):
    with pytest.raises(OSError) as caught:
        HttpServer("127.0.0.1", server.port)
    text = f"can't listen on 127.0.0.1:{server.port} for REST: Address already in use"
    assert str(caught.value) == text


def test_other_origins(server: HttpServer):
    server.set_answer(lambda method, path, body, time_left_s: (200, b"{}"))
    for method in ("OPTIONS", "GET"):
        status, headers, _ = ask(server, method, "/v1/models/m")
        assert (status, headers["Access-Control-Allow-Origin"]) == (200, "*")
        assert headers["Access-Control-Allow-Methods"] == "POST, GET"


def exchange(server: HttpServer, data: bytes) -> bytes:
    """Sends bytes, and returns the first ones that come back."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as connection:
        connection.sendall(data)
        return connection.recv(65536)


def test_callers_that_break_http_or_leave_cause_no_log(
    server: HttpServer, caplog: pytest.LogCaptureFixture
):
    server.set_answer(lambda method, path, body, time_left_s: (200, path.encode()))
    post = b"POST /v1/models/m:predict HTTP/1.1\r\nHost: h\r\n"
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as leaving:
        leaving.sendall(post + b"Content-Length: 900\r\n\r\n{")
    for data, answer in (
        (b"\x16\x03\x01 nonsense\r\n\r\n", b" 400 "),
        (b"GET /v1/models/m HTTP/1.1\r\n\r\n", b" 400 "),  # without Host
        (post + b"Content-Length: -1\r\n\r\n", b" 400 "),
        (post + b"Content-Encoding: br\r\nContent-Length: 1\r\n\r\na", b" 400 "),
        (post + b"Content-Length: 1001\r\n\r\n", b" 413 "),  # before the body
        (b"GET /v1/models/a%0Ab HTTP/1.0\r\n\r\n", b" 200 "),
    ):
        received = exchange(server, data)
        assert answer in received.partition(b"\r\n")[0]
    assert caplog.records == []


@contextmanager
def a_call_under_way(server: HttpServer, body: bytes = b"") -> Iterator[None]:
    began, go_on = threading.Event(), threading.Event()

    def answer(*_: object) -> tuple[int, bytes]:
        began.set()
        assert go_on.wait(30)
        return 200, b"{}"

    server.set_answer(answer)
    path = "/v1/models/m:predict"
    waiting = threading.Thread(target=ask, args=(server, "POST", path, body))
    waiting.start()
    assert began.wait(30)
    try:
        yield
    finally:
        go_on.set()
        waiting.join()


def test_bodies_of_all_calls_are_limited(server: HttpServer):
    path = "/v1/models/m:predict"
    with a_call_under_way(server, b"x" * 1000):
        status, _, text = ask(server, "POST", path, b"x" * 900)
        assert (status, json.loads(text)) == (429, {"error": "calls have 1,900 bytes already"})
    assert ask(server, "POST", path, b"x" * 1000)[0] == 200


def test_a_caller_that_does_not_read_loses_its_connection(
    server: HttpServer, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(http_server, "_ANSWER_TIMEOUT_S", 0.1)
    size = 20_000_000  # more than sockets hold
    server.set_answer(lambda method, path, body, time_left_s: (200, b" " * size))
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as connection:
        connection.sendall(b"GET /v1/models/m HTTP/1.0\r\n\r\n")
        received = len(connection.recv(1))
        deadline_s = time.monotonic() + 30
        while server._runner.server.connections and time.monotonic() < deadline_s:
            time.sleep(0.02)
        with suppress(ConnectionResetError):
            while part := connection.recv(1 << 20):
                received += len(part)
    assert 0 < received < size


def test_a_call_too_many_is_refused_at_once(server: HttpServer):
    with a_call_under_way(server):
        assert ask(server, "GET", "/v1/models/m")[0] == 429
