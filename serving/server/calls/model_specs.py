"""Reads and fills the ModelSpec of requests and responses."""

from __future__ import annotations

from typing import Any

from tensorflow_serving.apis import model_pb2

from serving.server.errors import invalid_argument

DEFAULT_SIGNATURE = "serving_default"


def model_name(request: Any) -> str:
    """Returns the model's name in a request; raises StatusError without a ModelSpec."""
    if not request.HasField("model_spec"):
        raise invalid_argument("Missing ModelSpec")
    name: str = request.model_spec.name
    return name


def fill(spec: model_pb2.ModelSpec, requested: model_pb2.ModelSpec, version: int) -> None:
    """Fills the ModelSpec of a response.

    Args:
        spec: the ModelSpec to fill.
        requested: the request's ModelSpec.
        version: number of the version that answered.
    """
    spec.name = requested.name
    spec.version.value = version
    spec.signature_name = requested.signature_name or DEFAULT_SIGNATURE
