"""A client for TF Serving and for ``serving.server``: takes and returns numpy arrays.

    with Client("127.0.0.1:8500") as client:
        client.wait_until_ready("digits")
        outputs = client.predict("digits", images)     # {"outputs": array of float32 [n, 10]}

It does not need TensorFlow. On a command line: ``python -m serving.client --help``.
"""

from serving.client.aio import AsyncClient
from serving.client.connection import Tls
from serving.client.errors import (
    CallFailed,
    Cancelled,
    DeadlineExceeded,
    InvalidAnswer,
    InvalidInput,
    InvalidRequest,
    NotFound,
    NotReady,
    PermissionDenied,
    ResourceExhausted,
    ServerError,
    ServingError,
    Unavailable,
    Unimplemented,
)
from serving.client.results import (
    Classification,
    ModelMetadata,
    Signature,
    TensorInfo,
    VersionStatus,
)
from serving.client.sync import Client

__all__ = [
    "AsyncClient",
    "CallFailed",
    "Cancelled",
    "Classification",
    "Client",
    "DeadlineExceeded",
    "InvalidAnswer",
    "InvalidInput",
    "InvalidRequest",
    "ModelMetadata",
    "NotFound",
    "NotReady",
    "PermissionDenied",
    "ResourceExhausted",
    "ServerError",
    "ServingError",
    "Signature",
    "TensorInfo",
    "Tls",
    "Unavailable",
    "Unimplemented",
    "VersionStatus",
]
