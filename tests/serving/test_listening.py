"""gRPC servers without models: the health service, calls that wait, places to listen."""

from __future__ import annotations

import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from serving.server import health, listening
from tests.running import wait_until

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
SERVICE_UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN


def test_health_by_grpcs_own_client(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(health, "_MAX_WATCHERS", 2)
    server, target = listening.listen("127.0.0.1", 0)
    service = health.Health()
    server.add_generic_rpc_handlers((service.handler(),))
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


def test_calls_wait_for_a_thread_and_too_many_are_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(listening, "_MAX_WAITING", 3)
    server, target = listening.listen("127.0.0.1", 0, max_threads=1)
    running, go_on = threading.Semaphore(0), threading.Event()

    def answer(request: bytes, context: grpc.ServicerContext) -> bytes:
        running.release()
        assert go_on.wait(20)
        return request

    methods = {"Echo": grpc.unary_unary_rpc_method_handler(answer)}
    service = health.Health()
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler("test", methods), service.handler())
    )
    server.start()
    with grpc.insecure_channel(target) as channel, ThreadPoolExecutor(1) as pool:
        echo = channel.unary_unary("/test/Echo")
        calls = [echo.future(bytes([number]), timeout=20) for number in range(3)]
        assert running.acquire(timeout=10)  # one is worked on, two wait
        # Health has threads of its own.
        check = health_pb2_grpc.HealthStub(channel).Check
        assert check(health_pb2.HealthCheckRequest(), timeout=10).status == NOT_SERVING
        more = [echo.future(b"more", timeout=20) for _ in range(2)]
        refused = wait_until(lambda: [call for call in more if call.done()], 10, "one is refused")
        assert [call.code() for call in refused] == [grpc.StatusCode.RESOURCE_EXHAUSTED]
        go_on.set()
        assert [call.result() for call in calls] == [b"\0", b"\1", b"\2"]
        assert [call.result() for call in more if call not in refused] == [b"more"]
        assert pool.submit(echo, b"again", timeout=10).result() == b"again"
    server.stop(0).wait(10)


def test_ipv6_and_a_socket(tmp_path: Path):
    path = tmp_path / "grpc.sock"
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(path))  # left behind by a server that was killed
    server, target = listening.listen("::1", 0, socket_path=str(path))
    service = health.Health()
    server.add_generic_rpc_handlers((service.handler(),))
    server.start()
    for address in (target, f"unix:{path}"):
        with grpc.insecure_channel(address) as channel:
            check = health_pb2_grpc.HealthStub(channel).Check
            assert check(health_pb2.HealthCheckRequest(), timeout=10).status == NOT_SERVING
    server.stop(0).wait(10)
    assert target.startswith("[::1]:")


def test_a_socket_that_cant_be_had_is_said(tmp_path: Path):
    with pytest.raises(OSError, match=r"can't listen on .*/no/such\.sock"):
        listening.listen("127.0.0.1", 0, socket_path=f"{tmp_path}/no/such.sock")
