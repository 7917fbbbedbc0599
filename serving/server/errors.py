"""Errors that end a call with a gRPC status of their own. Imports no TensorFlow."""

from __future__ import annotations

from typing import Any

import grpc


class _Pickled(Exception):  # noqa: N818
    """An error that arrives in another process as it was."""

    def __reduce__(self) -> tuple[Any, ...]:
        # Exception's own would give the message to a constructor that takes other arguments.
        return type(self).__new__, (type(self),), self.__dict__ | {"args": self.args}


class StatusError(_Pickled):
    """A request that is answered with an error status.

    Args:
        code: the gRPC status.
        text: the message that the caller gets.
    """

    def __init__(self, code: grpc.StatusCode, text: str) -> None:
        super().__init__(text)
        self.code = code


class ServableNotFound(_Pickled, LookupError):  # noqa: N818 - TF Serving's words
    """The requested model is not served, or this version of it is not available."""

    def __init__(self, name: str, number: int | None) -> None:
        which = f"Latest({name})" if number is None else f"Specific({name}, {number})"
        super().__init__(f"Servable not found for request: {which}")


def invalid_argument(text: str) -> StatusError:
    """Returns the error for a request that is wrong in every state of the server."""
    return StatusError(grpc.StatusCode.INVALID_ARGUMENT, text)
