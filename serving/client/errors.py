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

import grpc


class ServingError(Exception):
    """Base class of the errors that ``serving.client`` raises."""


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
    """

    advice = "See the server's log."

    def __init__(
        self, target: str, model: str, method: str, code: grpc.StatusCode, details: str
    ) -> None:
        status = f"{code.name}: {details.rstrip('.')}"
        super().__init__(f"{method} of model {model!r} at {target} failed: {status}. {self.advice}")
        self.target = target
        self.model = model
        self.method = method
        self.code = code
        self.details = details


class InvalidRequest(CallFailed):
    """The server refuses the request."""

    advice = "Compare names, dtypes and shapes with those of metadata()."


class NotFound(CallFailed):
    """The server does not have this model or version."""

    advice = "Check the model's name; status() lists the versions that are loaded."


class DeadlineExceeded(CallFailed, TimeoutError):
    """No answer came within the time limit."""

    advice = "Increase timeout_s, or send less in one call."


class Unavailable(CallFailed):
    """No connection to the target, or the server is overloaded; retries failed too."""

    advice = "Check that a server listens there and that it is not overloaded."


class ResourceExhausted(CallFailed):
    """A limit of the server was reached."""

    advice = "Send less in one call, or increase the server's limits."


class PermissionDenied(CallFailed):
    """The server requires other credentials."""

    advice = "Check the credentials."


class Unimplemented(CallFailed):
    """The server does not have the method."""

    advice = "Check that the target is TF Serving's gRPC port, not its REST port."


class Cancelled(CallFailed):
    """The call was cancelled before its end."""

    advice = "The client was closed, or a proxy between client and server ended the call."


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
    target: str, model: str, method: str, code: grpc.StatusCode, details: str | None
) -> CallFailed:
    """Returns the error for a status; it is ServerError for statuses that are not in the table."""
    error_type = _ERRORS.get(code, ServerError)
    return error_type(target, model, method, code, details or "no message")
