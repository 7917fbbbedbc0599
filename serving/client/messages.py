"""Requests and answers as messages; no input or output happens here.

Every function is pure: what is asked, as numpy and names, becomes a message, and a message becomes
what the caller gets. How it travels is the client's business.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from google.protobuf.message import DecodeError

from serving import tensors
from serving.client.errors import InvalidAnswer, InvalidInput
from serving.client.models import ModelMetadata, Signature, TensorInfo, VersionStatus
from serving.protos import serving_pb2
from serving.tensors import Array


@dataclass(frozen=True)
class Method:
    """A method of TF Serving's gRPC services and the messages that it takes and gives."""

    path: str
    request_type: type[Any]
    answer_type: type[Any]


PREDICT: Final = Method(
    "/tensorflow.serving.PredictionService/Predict",
    serving_pb2.PredictRequest,
    serving_pb2.PredictResponse,
)
METADATA: Final = Method(
    "/tensorflow.serving.PredictionService/GetModelMetadata",
    serving_pb2.GetModelMetadataRequest,
    serving_pb2.GetModelMetadataResponse,
)
STATUS: Final = Method(
    "/tensorflow.serving.ModelService/GetModelStatus",
    serving_pb2.GetModelStatusRequest,
    serving_pb2.GetModelStatusResponse,
)
RELOAD: Final = Method(
    "/tensorflow.serving.ModelService/HandleReloadConfigRequest",
    serving_pb2.ReloadConfigRequest,
    serving_pb2.ReloadConfigResponse,
)
METHODS: Final = (PREDICT, METADATA, STATUS, RELOAD)

_SIGNATURES = "signature_def"  # the one metadata field that TF Serving has
_STATES = {number: name for name, number in serving_pb2.ModelVersionStatus.State.items()}


def model_spec(
    model: str, version: int | None = None, label: str | None = None, signature: str | None = None
) -> serving_pb2.ModelSpec:
    """Which model, and which of its versions.

    Raises:
        InvalidInput: there is no name, or both a version and a label.
    """
    if not model:
        raise InvalidInput("the model has no name")
    if version is not None and label is not None:
        raise InvalidInput(f"ask for version {version} or for label {label!r}, not for both")
    spec = serving_pb2.ModelSpec(name=model, signature_name=signature or "")
    if version is not None:
        spec.version.value = version
    if label is not None:
        spec.version_label = label
    return spec


def predict_request(
    spec: serving_pb2.ModelSpec, inputs: Mapping[str, Array], output_filter: Iterable[str] | None
) -> serving_pb2.PredictRequest:
    """Raises InvalidInput if an array can't be sent."""
    request = serving_pb2.PredictRequest(model_spec=spec, output_filter=output_filter or ())
    for name, array in inputs.items():
        try:
            tensors.write(array, request.inputs[name])
        except ValueError as error:
            raise InvalidInput(f"input {name!r}: {error}") from None
    return request


def read_outputs(response: serving_pb2.PredictResponse) -> dict[str, Array]:
    """Named outputs, by name; raises InvalidAnswer if one can't be read."""
    arrays = {}
    for name in sorted(response.outputs):
        try:
            arrays[name] = tensors.read(response.outputs[name])
        except ValueError as error:
            raise InvalidAnswer(f"output {name!r}: {error}") from None
    return arrays


def metadata_request(spec: serving_pb2.ModelSpec) -> serving_pb2.GetModelMetadataRequest:
    """Asks for the signatures."""
    return serving_pb2.GetModelMetadataRequest(model_spec=spec, metadata_field=[_SIGNATURES])


def read_metadata(response: serving_pb2.GetModelMetadataResponse) -> ModelMetadata:
    """Signatures that can be called; raises InvalidAnswer if there is no word about them."""
    if _SIGNATURES not in response.metadata:
        raise InvalidAnswer(f"the metadata has no {_SIGNATURES!r}")
    # Any's own Unpack would compare names of messages, and ours has another.
    packed = response.metadata[_SIGNATURES].value
    try:
        definitions = serving_pb2.SignatureDefMap.FromString(packed).signature_def
    except DecodeError as error:
        raise InvalidAnswer(f"the signatures can't be parsed: {error}") from None
    return ModelMetadata(
        model=response.model_spec.name,
        version=response.model_spec.version.value,
        signatures={
            name: Signature(
                name, _infos(definitions[name].inputs), _infos(definitions[name].outputs)
            )
            for name in sorted(definitions)
            if not name.startswith("__saved_model")  # the initializer and its like
        },
    )


def _infos(infos: Mapping[str, Any]) -> dict[str, TensorInfo]:
    return {name: _info(name, infos[name]) for name in sorted(infos)}


def _info(name: str, info: Any) -> TensorInfo:
    sizes = tuple(None if dim.size < 0 else dim.size for dim in info.tensor_shape.dim)
    shape = None if info.tensor_shape.unknown_rank else sizes
    return TensorInfo(name, tensors.dtype_name(info.dtype), shape)


def status_request(spec: serving_pb2.ModelSpec) -> serving_pb2.GetModelStatusRequest:
    """Asks for the states of all versions, or of the one that ``spec`` names."""
    return serving_pb2.GetModelStatusRequest(model_spec=spec)


def read_status(response: serving_pb2.GetModelStatusResponse) -> list[VersionStatus]:
    """States by version, newest first."""
    statuses = [
        VersionStatus(
            entry.version,
            _STATES.get(entry.state, "UNKNOWN"),
            (entry.status.error_message or f"error {entry.status.error_code}")
            if entry.status.error_code
            else None,
        )
        for entry in response.model_version_status
    ]
    return sorted(statuses, key=lambda status: status.version, reverse=True)


def reload_request(config: str | Any) -> serving_pb2.ReloadConfigRequest:
    """Asks the server to serve what ``config`` says, and nothing else.

    Args:
        config: a ModelServerConfig: its text, as in a models.config, or the message (ours or
            tensorflow-serving-api's).

    Raises:
        InvalidInput: the text can't be parsed, or the message is another one.
    """
    request = serving_pb2.ReloadConfigRequest()
    if isinstance(config, str):
        from google.protobuf import text_format  # slow to import, and nothing else here needs it

        try:
            text_format.Parse(config, request.config)
        except text_format.ParseError as error:
            raise InvalidInput(f"config is no text of a ModelServerConfig: {error}") from None
        return request
    if getattr(getattr(config, "DESCRIPTOR", None), "name", None) != "ModelServerConfig":
        raise InvalidInput(f"config is {type(config).__name__}; give a ModelServerConfig, or text")
    request.config.MergeFromString(config.SerializeToString())
    return request
