"""What can go wrong when a model server is asked.

ServingError
 ├─ InvalidInput          what was to be sent is wrong; nothing was sent     (also a ValueError)
 ├─ InvalidAnswer         the answer can't be read
 ├─ NotReady              waiting for a model was in vain
 └─ CallFailed            a call was made, and it ended with a gRPC status
     ├─ InvalidRequest    the server refuses it: inputs, dtypes, shapes, signature, output filter
     ├─ NotFound          no such model or version there
     ├─ DeadlineExceeded  no answer within the time allowed                  (also a TimeoutError)
     ├─ Unavailable       nobody answers there, or the server is overloaded; tried again in vain
     ├─ ResourceExhausted a limit of the server: threads, memory, size of a message
     ├─ PermissionDenied  no or wrong credentials
     ├─ Unimplemented     the server doesn't know the method
     ├─ Cancelled         the call was cancelled before its end
     └─ ServerError       the server failed
"""

# ruff: noqa: N818 - the names say what happened

from __future__ import annotations

import grpc


class ServingError(Exception):
    """Base of everything that ``serving.client`` raises on purpose."""


class InvalidInput(ServingError, ValueError):
    """What was to be sent is wrong; nothing was sent."""


class InvalidAnswer(ServingError):
    """The server's answer can't be read."""


class NotReady(ServingError):
    """A model did not become available."""


class CallFailed(ServingError):
    """A call ended with a gRPC status other than OK.

    Attributes:
        target, model, method: what was asked, and where.
        code: the gRPC status.
        details: the server's message, as it came.
    """

    advice = "See the server's log."

    def __init__(
        self, target: str, model: str, method: str, code: grpc.StatusCode, details: str
    ) -> None:
        said = f"{code.name}: {details.rstrip('.')}"
        super().__init__(f"{method} of model {model!r} at {target} failed: {said}. {self.advice}")
        self.target = target
        self.model = model
        self.method = method
        self.code = code
        self.details = details


class InvalidRequest(CallFailed):
    """The server refuses the request."""

    advice = "Compare names, dtypes and shapes with what metadata() says of the model."


class NotFound(CallFailed):
    """The server has no such model or version."""

    advice = "Check the model's name; status() lists the versions that are loaded."


class DeadlineExceeded(CallFailed, TimeoutError):
    """No answer came within the time allowed."""

    advice = "Allow more by timeout_s, or send less in one call."


class Unavailable(CallFailed):
    """Nobody answers at the target, or the server is overloaded; it was tried again in vain."""

    advice = "Check that a server listens there and that it is not overloaded."


class ResourceExhausted(CallFailed):
    """A limit of the server was reached."""

    advice = "Send less at once, or raise the server's limits."


class PermissionDenied(CallFailed):
    """The server wants other credentials."""

    advice = "Check the credentials."


class Unimplemented(CallFailed):
    """The server doesn't know the method."""

    advice = "Check that the target is TF Serving's gRPC port, not its REST port."


class Cancelled(CallFailed):
    """The call was cancelled before its end."""

    advice = "The client was closed, or somebody between client and server ended the call."


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
    """The error for a status; statuses that the table doesn't name are the server's failure."""
    kind = _ERRORS.get(code, ServerError)
    return kind(target, model, method, code, details or "no message")
