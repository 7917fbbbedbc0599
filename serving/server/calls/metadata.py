"""PredictionService/GetModelMetadata: the signatures of a model."""

from __future__ import annotations

from typing import Any

from tensorflow_serving.apis import get_model_metadata_pb2

from serving.server.deadlines import TimeLeft
from serving.server.errors import invalid_argument
from serving.server.models.registry import ModelRegistry


def get_model_metadata(
    registry: ModelRegistry, request: Any, time_left_s: TimeLeft
) -> get_model_metadata_pb2.GetModelMetadataResponse:
    """Answers PredictionService/GetModelMetadata."""
    if not request.metadata_field:
        raise invalid_argument("GetModelMetadataRequest must specify at least one metadata_field")
    for field in request.metadata_field:
        if field != "signature_def":
            raise invalid_argument(f"Metadata field {field} is not supported")
    with registry.use(request.model_spec) as (version, model):
        definitions = {key: value.definition for key, value in model.signatures.items()}
    response = get_model_metadata_pb2.GetModelMetadataResponse()
    response.model_spec.name = request.model_spec.name
    response.model_spec.version.value = version
    signatures = get_model_metadata_pb2.SignatureDefMap(signature_def=definitions)
    response.metadata["signature_def"].Pack(signatures)
    return response
