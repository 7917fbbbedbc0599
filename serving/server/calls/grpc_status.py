"""The gRPC status of an error."""

from __future__ import annotations

import grpc
import tensorflow as tf
from google.protobuf.message import DecodeError

from serving.server.errors import ServableNotFound, StatusError

_MAX_TEXT = 1024  # characters; TF Serving cuts its texts there
_CODES = {code.value[0]: code for code in grpc.StatusCode}


def status_of(error: Exception) -> tuple[grpc.StatusCode, str]:
    """Returns the gRPC code and text of an error; TF Serving's if it has the same error."""
    if isinstance(error, StatusError):
        code, text = error.code, str(error)
    elif isinstance(error, ServableNotFound):
        code, text = grpc.StatusCode.NOT_FOUND, str(error)
    elif isinstance(error, tf.errors.OpError):
        code, text = _CODES.get(error.error_code, grpc.StatusCode.UNKNOWN), error.message
    elif isinstance(error, DecodeError):
        code, text = grpc.StatusCode.INTERNAL, ""  # gRPC's C++ library gives no reason
    elif isinstance(error, MemoryError):
        code, text = grpc.StatusCode.RESOURCE_EXHAUSTED, "out of memory"
    else:
        code, text = grpc.StatusCode.INTERNAL, f"{type(error).__name__}: {error}"
    return code, text[:_MAX_TEXT]
