"""The gRPC status that tells a caller about an error."""

from __future__ import annotations

import grpc
import tensorflow as tf

from serving.server.models import Refused
from serving.server.servables import NotServed

_MAX_TEXT = 1024  # TF Serving cuts its texts there
_CODES = {code.value[0]: code for code in grpc.StatusCode}


def status_of(error: Exception) -> tuple[grpc.StatusCode, str]:
    """Code and text for an error, as TF Serving has them where it knows the error."""
    if isinstance(error, Refused):
        code, text = error.code, str(error)
    elif isinstance(error, NotServed):
        code, text = grpc.StatusCode.NOT_FOUND, str(error)
    elif isinstance(error, tf.errors.OpError):
        code, text = _CODES.get(error.error_code, grpc.StatusCode.UNKNOWN), error.message
    elif isinstance(error, MemoryError):
        code, text = grpc.StatusCode.RESOURCE_EXHAUSTED, "out of memory"
    else:
        code, text = grpc.StatusCode.INTERNAL, f"{type(error).__name__}: {error}"
    return code, text[:_MAX_TEXT]
