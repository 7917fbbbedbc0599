"""gRPC servers without models: the health service, calls that wait, places to listen."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from serving.server.frontend import concurrency, grpc_server, health
from tests.running import wait_until

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
SERVICE_UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN


def test_health_by_grpcs_own_client(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(health, "_MAX_WATCHERS", 2)
    server, target = grpc_server.make("127.0.0.1", 0)
    service = health.HealthService()
    service.add_to(server)
    server.start()
    everything, other = health_pb2.HealthCheckRequest(), health_pb2.HealthCheckRequest(service="x")
    with grpc.insecure_channel(target) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        assert stub.Check(everything, timeout=10).status == NOT_SERVING
        watch = stub.Watch(everything, timeout=30)
        assert next(watch).status == NOT_SERVING
        stranger = stub.Watch(other, timeout=30)
        assert next(stranger).status == SERVICE_UNKNOWN
        with pytest.raises(grpc.RpcError) as caught:
            next(stub.Watch(everything, timeout=30))
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        stranger.cancel()
        wait_until(lambda: len(service._watchers) == 1, 10, "the cancelled one is forgotten")

        service.set_serving()
        assert stub.Check(everything, timeout=10).status == SERVING
        assert next(watch).status == SERVING
        with pytest.raises(grpc.RpcError) as caught:
            stub.Check(other, timeout=10)
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND

        service.stop()
        assert [response.status for response in watch] == [NOT_SERVING]  # and it ends
        assert watch.code() is grpc.StatusCode.OK
        assert stub.Check(everything, timeout=10).status == NOT_SERVING
    server.stop(0).wait(10)


@pytest.fixture
def echo(monkeypatch: pytest.MonkeyPatch) -> Iterator[Echo]:
    """A server that works on one call at a time, while three wait."""
    monkeypatch.setattr(grpc_server, "_MAX_WAITING", 3)
    echo = Echo()
    server, target = grpc_server.make("127.0.0.1", 0, max_threads=1)
    handlers = [
        grpc.method_handlers_generic_handler(
            service, {"Echo": grpc.unary_unary_rpc_method_handler(answer)}
        )
        for service, answer in (("test", echo.answer), ("other", lambda request, context: request))
    ]
    server.add_generic_rpc_handlers(
        (concurrency.limit_concurrency(handlers, "test", concurrency.Turns(1)),)
    )
    server.start()
    with grpc.insecure_channel(target) as echo.channel:
        yield echo
    echo.go_on.set()
    server.stop(0).wait(10)


class Echo:
    channel: grpc.Channel

    def __init__(self) -> None:
        self.begun: list[bytes] = []
        self.go_on = threading.Event()

    def answer(self, request: bytes, context: grpc.ServicerContext) -> bytes:
        self.begun.append(request)
        assert self.go_on.wait(20)
        return request

    def call(self, request: bytes, timeout_s: float = 20) -> grpc.Future:
        return self.channel.unary_unary("/test/Echo").future(request, timeout=timeout_s)

    def call_and_wait(self, request: bytes) -> grpc.Future:
        call = self.call(request)
        wait_until(lambda: request in self.begun, 10, "it is worked on")
        return call


def test_calls_wait_for_their_turn_and_too_many_are_refused(echo: Echo):
    first = echo.call_and_wait(b"first")
    more = [echo.call(bytes([number])) for number in range(5)]
    done = wait_until(lambda: [c for c in more if c.done()][1:], 10, "two are refused")
    refused = [call for call in more if call.done()]
    assert len(done) == 1 and echo.begun == [b"first"]
    assert {call.code() for call in refused} == {grpc.StatusCode.RESOURCE_EXHAUSTED}
    echo.go_on.set()
    assert first.result() == b"first"
    assert sorted(call.result() for call in more if call not in refused) == sorted(echo.begun[1:])
    assert len(echo.begun) == 4


def test_a_call_that_ran_out_of_time_is_not_worked_on(echo: Echo):
    first = echo.call_and_wait(b"first")
    late = echo.call(b"late", timeout_s=0.2)
    assert late.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    time.sleep(0.3)  # the server's clock for the deadline is its own
    assert echo.channel.unary_unary("/other/Echo")(b"hi", timeout=10) == b"hi"  # is not limited
    echo.go_on.set()
    assert first.result() == b"first"
    assert echo.call(b"next").result() == b"next"
    assert echo.begun == [b"first", b"next"]


@pytest.mark.parametrize("timeout_s", [None, 1e9])
def test_a_call_may_wait_for_its_turn_for_ever(echo: Echo, timeout_s: float | None):
    first = echo.call_and_wait(b"first")
    patient = echo.channel.unary_unary("/test/Echo").future(b"patient", timeout=timeout_s)
    # This call came later, on the same connection.
    echo.channel.unary_unary("/other/Echo")(b"", timeout=10)
    echo.go_on.set()
    assert first.result() == b"first"
    assert patient.result(timeout=10) == b"patient"


def test_callers_who_never_send_their_requests_hold_up_nobody(echo: Echo):
    echo.go_on.set()
    never = threading.Event()

    def nothing() -> Iterator[bytes]:
        never.wait()
        yield b""

    silent = [echo.channel.stream_unary("/test/Echo").future(nothing()) for _ in range(3)]
    assert echo.call(b"hello").result() == b"hello"
    never.set()
    for call in silent:
        call.cancel()


def test_ipv6_and_a_socket(tmp_path: Path):
    path = tmp_path / "grpc.sock"
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(path))  # left behind by a server that was killed
    server, target = grpc_server.make("::1", 0, socket_path=str(path))
    service = health.HealthService()
    service.add_to(server)
    server.start()
    for address in (target, f"unix:{path}"):
        with grpc.insecure_channel(address) as channel:
            check = health_pb2_grpc.HealthStub(channel).Check
            assert check(health_pb2.HealthCheckRequest(), timeout=10).status == NOT_SERVING
    server.stop(0).wait(10)
    assert target.startswith("[::1]:")


def test_a_socket_that_cant_be_had_is_said(tmp_path: Path):
    with pytest.raises(OSError, match=r"can't listen on .*/no/such\.sock"):
        grpc_server.make("127.0.0.1", 0, socket_path=f"{tmp_path}/no/such.sock")
