"""Errors of calls to a model server.

ServingError
 ├─ InvalidInput          the arguments are wrong; nothing was sent          (also a ValueError)
 ├─ InvalidAnswer         the answer can't be decoded
 ├─ NotReady              a model did not become available in time
 └─ CallFailed            a call ended with an error status of gRPC
     ├─ InvalidRequest    the server refuses it: inputs, dtypes, shapes, signature, output filter
     ├─ NotFound          the server does not have this model or version
     ├─ DeadlineExceeded  no answer within the time limit                    (also a TimeoutError)
     ├─ Unavailable       no connection, or the server is overloaded; retries failed too
     ├─ ResourceExhausted a limit of the server: threads, memory, size of a message
     ├─ PermissionDenied  no credentials, or wrong ones
     ├─ Unimplemented     the server does not have the method
     ├─ Cancelled         the call was cancelled before its end
     └─ ServerError       the server failed
"""

# ruff: noqa: N818 - public names without "Error"

from __future__ import annotations

from typing import Any

import grpc

from serving.client.advice import advice_for


class ServingError(Exception):
    """Base class of the errors that ``serving.client`` raises."""

    def __reduce__(self) -> tuple[Any, ...]:
        # Exception's own would give the message to a constructor that takes other arguments.
        return type(self).__new__, (type(self),), self.__dict__ | {"args": self.args}


class InvalidInput(ServingError, ValueError):
    """The arguments are wrong; nothing was sent."""


class InvalidAnswer(ServingError):
    """The server's answer can't be decoded."""


class NotReady(ServingError):
    """A model did not become available in time."""


class CallFailed(ServingError):
    """A call ended with a gRPC status other than OK.

    Attributes:
        target, model, method: of the call.
        code: the gRPC status.
        details: the server's message, unchanged.
        proxy: the proxy on the way and its variable, ``http://proxy:3128 (https_proxy)``; None if
            there is none.
        advice: what to do; empty if nothing is sure to help.
    """

    def __init__(
        self,
        target: str,
        model: str,
        method: str,
        code: grpc.StatusCode,
        details: str,
        proxy: str | None = None,
    ) -> None:
        self.target = target
        self.model = model
        self.method = method
        self.code = code
        self.details = details
        self.proxy = proxy
        self.advice = advice_for(method, code, details, proxy)
        where = f"{target} by way of the proxy {proxy}" if proxy else target
        text = f"{method} of model {model!r} at {where} failed: {code.name}: {details.rstrip('.')}."
        super().__init__(f"{text} {self.advice}".rstrip())


class InvalidRequest(CallFailed):
    """The server refuses the request."""


class NotFound(CallFailed):
    """The server does not have this model or version."""


class DeadlineExceeded(CallFailed, TimeoutError):
    """No answer came within the time limit."""


class Unavailable(CallFailed):
    """No connection to the target, or the server is overloaded; retries failed too."""


class ResourceExhausted(CallFailed):
    """A limit of the server was reached."""


class PermissionDenied(CallFailed):
    """The server requires other credentials."""


class Unimplemented(CallFailed):
    """The server does not have the method."""


class Cancelled(CallFailed):
    """The call was cancelled before its end."""


class ServerError(CallFailed):
    """The server failed."""


_ERRORS: dict[grpc.StatusCode, type[CallFailed]] = {
    grpc.StatusCode.INVALID_ARGUMENT: InvalidRequest,
    grpc.StatusCode.FAILED_PRECONDITION: InvalidRequest,
    grpc.StatusCode.OUT_OF_RANGE: InvalidRequest,
    grpc.StatusCode.NOT_FOUND: NotFound,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceeded,
    grpc.StatusCode.UNAVAILABLE: Unavailable,
    grpc.StatusCode.RESOURCE_EXHAUSTED: ResourceExhausted,
    grpc.StatusCode.PERMISSION_DENIED: PermissionDenied,
    grpc.StatusCode.UNAUTHENTICATED: PermissionDenied,
    grpc.StatusCode.UNIMPLEMENTED: Unimplemented,
    grpc.StatusCode.CANCELLED: Cancelled,
}


def call_failed(
    target: str,
    model: str,
    method: str,
    code: grpc.StatusCode,
    details: str | None,
    proxy: str | None = None,
) -> CallFailed:
    """Returns the error for a status; it is ServerError for statuses that are not in the table."""
    error_type = _ERRORS.get(code, ServerError)
    return error_type(target, model, method, code, details or "no message", proxy)
