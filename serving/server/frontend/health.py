"""gRPC's health service, grpc.health.v1, for the server as a whole."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import grpc
from grpc_health.v1 import (  # type: ignore[import-untyped]
    health,
    health_pb2,
    health_pb2_grpc,
)

_MAX_WATCHERS = 100  # each occupies a thread


class HealthService(health.HealthServicer):
    """grpcio-health-checking's service with a limit on watchers, whose streams end with ``stop``.

    The library's streams stay open until the server's grace period is over, so one watcher would
    delay the end of the process. The first status is NOT_SERVING.
    """

    def __init__(self) -> None:
        super().__init__(experimental_non_blocking=False)
        self._watchers: set[Any] = set()
        self._watchers_lock = threading.Lock()
        self.set(health.OVERALL_HEALTH, health_pb2.HealthCheckResponse.NOT_SERVING)

    def add_to(self, server: Any) -> None:
        """Adds the service to a gRPC server, or to anything with ``add_generic_rpc_handlers``."""
        health_pb2_grpc.add_HealthServicer_to_server(self, server)

    def set_serving(self) -> None:
        """Sets the status to SERVING."""
        self.set(health.OVERALL_HEALTH, health_pb2.HealthCheckResponse.SERVING)

    def stop(self) -> None:
        """Sets the status to NOT_SERVING; watchers receive it, and their streams end."""
        self.enter_graceful_shutdown()
        with self._watchers_lock:
            for watcher in self._watchers:
                watcher.close()

    def Watch(  # noqa: D102, N802 - the library's
        self, request: Any, context: grpc.ServicerContext, send_response_callback: Any = None
    ) -> Iterator[Any]:
        with self._watchers_lock:
            if len(self._watchers) >= _MAX_WATCHERS:
                context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "too many watchers")
            watcher = super().Watch(request, context)
            self._watchers.add(watcher)
        if not context.add_callback(lambda: self._forget(watcher)):
            self._forget(watcher)  # the call has ended already
        return watcher  # type: ignore[no-any-return]

    def _forget(self, watcher: Any) -> None:
        with self._watchers_lock:
            self._watchers.discard(watcher)
