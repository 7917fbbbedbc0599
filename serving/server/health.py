"""gRPC's health service, grpc.health.v1: may this server be sent calls?"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import grpc

from serving.protos.server_config_pb2 import HealthCheckRequest, HealthCheckResponse

_MAX_WATCHERS = 100  # callers who watch hold no thread, but memory

# Sends a response, or ends the stream with None. It blocks while the caller doesn't read.
_Send = Callable[[HealthCheckResponse | None], None]


class Health:
    """Answers Check and Watch for the server as a whole, the empty service name.

    It starts as NOT_SERVING. Both methods have threads of their own: an answer must not wait behind
    slow models, nor Check behind watchers who don't read.
    """

    def __init__(self) -> None:
        self._status = HealthCheckResponse.NOT_SERVING
        self._watchers: set[_Send] = set()
        self._lock = threading.Lock()

    def handler(self) -> grpc.GenericRpcHandler:
        """What a gRPC server needs to answer."""

        def check(request: HealthCheckRequest, context: grpc.ServicerContext) -> object:
            if request.service:
                context.abort(grpc.StatusCode.NOT_FOUND, "unknown service")
            return HealthCheckResponse(status=self._status)

        def watch(request: HealthCheckRequest, context: grpc.ServicerContext, send: _Send) -> None:
            self._watch(request, context, send)

        # The attributes are how gRPC's own health servicer keeps off the server's threads.
        check.experimental_thread_pool = ThreadPoolExecutor(1)  # type: ignore[attr-defined]
        watch.experimental_thread_pool = ThreadPoolExecutor(2)  # type: ignore[attr-defined]
        watch.experimental_non_blocking = True  # type: ignore[attr-defined]
        coding = {
            "request_deserializer": HealthCheckRequest.FromString,
            "response_serializer": HealthCheckResponse.SerializeToString,
        }
        return grpc.method_handlers_generic_handler(
            "grpc.health.v1.Health",
            {
                "Check": grpc.unary_unary_rpc_method_handler(check, **coding),
                "Watch": grpc.unary_stream_rpc_method_handler(watch, **coding),
            },
        )

    def set_serving(self) -> None:
        """From now on: SERVING."""
        self._tell(HealthCheckResponse.SERVING, last=False)

    def stop(self) -> None:
        """From now on: NOT_SERVING; watchers are told so and their streams end."""
        self._tell(HealthCheckResponse.NOT_SERVING, last=True)

    def _watch(
        self, request: HealthCheckRequest, context: grpc.ServicerContext, send: _Send
    ) -> None:
        with self._lock:
            if len(self._watchers) >= _MAX_WATCHERS:
                context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "too many watchers")
            self._watchers.add(send)
            status = self._status
        if not context.add_callback(lambda: self._forget(send)):
            self._forget(send)  # the caller has gone already
        elif request.service:
            send(HealthCheckResponse(status=HealthCheckResponse.SERVICE_UNKNOWN))
        else:
            send(HealthCheckResponse(status=status))

    def _forget(self, send: _Send) -> None:
        with self._lock:
            self._watchers.discard(send)

    def _tell(self, status: HealthCheckResponse.ServingStatus, last: bool) -> None:
        with self._lock:
            self._status = status
            watchers = list(self._watchers)

        def tell(send: _Send) -> None:
            send(HealthCheckResponse(status=status))
            if last:
                send(None)

        for send in watchers:
            threading.Thread(target=tell, args=(send,), daemon=True).start()
