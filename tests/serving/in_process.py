"""Calls of TF Serving's methods without a network: request bytes in, status and bytes out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import grpc
from tensorflow_serving.apis import model_service_pb2, prediction_service_pb2

from serving.server.calls import services
from serving.server.models.registry import ModelRegistry

# Answers a method, by its short name: the code, the text, and the response's bytes.
Call = Callable[[str, bytes], tuple[grpc.StatusCode, str, bytes]]


class AbortedError(Exception):
    """What a gRPC context raises."""


class Context:
    """The part of a gRPC context that handlers use."""

    def __init__(self, timeout_s: float) -> None:
        self.code, self.text = grpc.StatusCode.OK, ""
        self.timeout_s = timeout_s

    def time_remaining(self) -> float:
        return self.timeout_s

    def abort(self, code: grpc.StatusCode, text: str) -> None:
        self.code, self.text = code, text
        raise AbortedError


class Details:
    """The call that a handler is looked up for."""

    def __init__(self, path: str) -> None:
        self.method = path
        self.invocation_metadata = ()


def methods() -> dict[str, Any]:
    """All methods of TF Serving's API, by name, with the path and the types of their messages."""
    return {
        method.name: (f"/{service.full_name}/{method.name}", method)
        for file in (prediction_service_pb2, model_service_pb2)
        for service in file.DESCRIPTOR.services_by_name.values()
        for method in service.methods
    }


def caller(
    registry: ModelRegistry,
    report: Callable[[str], None],
    as_content: bool = False,
    timeout_s: float = 20.0,
) -> Call:
    """Returns what answers calls; ``report`` gets the tracebacks of internal errors."""
    handlers = services.handlers(registry, report, as_content=as_content)
    paths = {name: path for name, (path, _) in methods().items()}

    def call(name: str, request: bytes) -> tuple[grpc.StatusCode, str, bytes]:
        (handler,) = [found for each in handlers if (found := each.service(Details(paths[name])))]
        context = Context(timeout_s)
        try:
            response = handler.unary_unary(request, context)
        except AbortedError:
            return context.code, context.text, b""
        return context.code, "", response

    return call
