"""gRPC's health service, grpc.health.v1: may this server be sent calls?"""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator

import grpc

from serving.protos.server_config_pb2 import HealthCheckRequest, HealthCheckResponse

_MAX_WATCHERS = 100  # each holds a thread


class Health:
    """Answers Check and Watch for the server as a whole, the empty service name.

    It starts as NOT_SERVING.
    """

    def __init__(self) -> None:
        self._status = HealthCheckResponse.NOT_SERVING
        # What is still to be said to each watcher; None ends it.
        self._watchers: set[queue.SimpleQueue[HealthCheckResponse | None]] = set()
        self._lock = threading.Lock()

    def handler(self) -> grpc.GenericRpcHandler:
        """What a gRPC server needs to answer."""
        coding = {
            "request_deserializer": HealthCheckRequest.FromString,
            "response_serializer": HealthCheckResponse.SerializeToString,
        }
        return grpc.method_handlers_generic_handler(
            "grpc.health.v1.Health",
            {
                "Check": grpc.unary_unary_rpc_method_handler(self._check, **coding),
                "Watch": grpc.unary_stream_rpc_method_handler(self._watch, **coding),
            },
        )

    def set_serving(self) -> None:
        """From now on: SERVING."""
        self._tell(HealthCheckResponse.SERVING, last=False)

    def stop(self) -> None:
        """From now on: NOT_SERVING; watchers are told so and their streams end."""
        self._tell(HealthCheckResponse.NOT_SERVING, last=True)

    def _check(
        self, request: HealthCheckRequest, context: grpc.ServicerContext
    ) -> HealthCheckResponse:
        if request.service:
            context.abort(grpc.StatusCode.NOT_FOUND, "unknown service")
        return HealthCheckResponse(status=self._status)

    def _watch(
        self, request: HealthCheckRequest, context: grpc.ServicerContext
    ) -> Iterator[HealthCheckResponse]:
        changes: queue.SimpleQueue[HealthCheckResponse | None] = queue.SimpleQueue()
        with self._lock:
            if len(self._watchers) >= _MAX_WATCHERS:
                context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "too many watchers")
            self._watchers.add(changes)
            changes.put(HealthCheckResponse(status=self._status))
        try:
            if not context.add_callback(lambda: changes.put(None)):
                return  # the caller has gone already
            while (change := changes.get()) is not None:
                if request.service:
                    change.status = HealthCheckResponse.SERVICE_UNKNOWN
                yield change
        finally:
            with self._lock:
                self._watchers.discard(changes)

    def _tell(self, status: HealthCheckResponse.ServingStatus, last: bool) -> None:
        with self._lock:
            self._status = status
            for changes in self._watchers:
                changes.put(HealthCheckResponse(status=status))
                if last:
                    changes.put(None)
