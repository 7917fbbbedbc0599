"""Makes request messages from arguments, and results from answer messages. Does no I/O."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError

from serving import element_types
from serving.client import checks, encoding
from serving.client.errors import InvalidAnswer, InvalidInput
from serving.client.methods import Method
from serving.client.results import (
    Classification,
    ModelMetadata,
    Signature,
    TensorInfo,
    VersionStatus,
)
from serving.protos import serving_pb2
from serving.tensors import Array

_SIGNATURES = "signature_def"  # the one metadata field that TF Serving has
_STATES = {number: name for name, number in serving_pb2.ModelVersionStatus.State.items()}


def model_spec(
    model: str, version: int | None = None, label: str | None = None, signature: str | None = None
) -> serving_pb2.ModelSpec:
    """Returns the ModelSpec that selects a model, a version and a signature.

    Raises:
        InvalidInput: the name is empty, or both a version and a label are given.
    """
    if not model:
        raise InvalidInput("the model has no name")
    if version is not None and label is not None:
        raise InvalidInput(f"give version={version} or label={label!r}, not both")
    spec = serving_pb2.ModelSpec(name=model, signature_name=signature or "")
    if version is not None:
        spec.version.value = version
    if label is not None:
        spec.version_label = label
    return spec


@functools.lru_cache
def predict_head(
    model: str,
    version: int | None,
    label: str | None,
    signature: str | None,
    output_filter: tuple[str, ...],
) -> bytes:
    """Returns a serialized PredictRequest without inputs; it is the same for many calls."""
    spec = model_spec(model, version, label, signature)
    request = serving_pb2.PredictRequest(model_spec=spec, output_filter=output_filter)
    return bytes(request.SerializeToString())


def predict_requests(
    head: bytes, inputs: Mapping[str, Array], max_batch_size: int | None
) -> list[bytes]:
    """Returns one request, or several of at most ``max_batch_size`` rows.

    Raises:
        InvalidInput: an array can't be sent, or the inputs can't be split.
    """
    if max_batch_size is None:
        return [encoding.encode_predict_request(head, inputs)]
    count = checks.row_count(inputs, max_batch_size)
    if count <= max_batch_size:
        return [encoding.encode_predict_request(head, inputs)]
    return [
        encoding.encode_predict_request(
            head, {name: array[start : start + max_batch_size] for name, array in inputs.items()}
        )
        for start in range(0, count, max_batch_size)
    ]


def join_outputs(batches: list[dict[str, Array]], rows: int) -> dict[str, Array]:
    """Joins the outputs of batches, by name; raises InvalidAnswer if they don't have ``rows``."""
    joined = {}
    for name, first in batches[0].items():
        arrays = [batch[name] for batch in batches if name in batch and batch[name].ndim]
        if sum(map(len, arrays)) != rows or len({array.shape[1:] for array in arrays}) != 1:
            raise InvalidAnswer(
                f"output {name!r} of {len(batches)} batches, the first of shape "
                f"{list(first.shape)}, can't be joined to {rows} rows: exclude it by "
                "output_filter, or call without max_batch_size"
            )
        joined[name] = np.concatenate(arrays)
    return joined


def example_requests(
    method: Method,
    spec: serving_pb2.ModelSpec,
    examples: list[serving_pb2.Example],
    context: serving_pb2.Example | None,
    max_batch_size: int | None,
) -> list[bytes]:
    """Returns requests for Classify or Regress, of at most ``max_batch_size`` examples each.

    Args:
        method: Classify or Regress.
        spec: selects the model.
        examples: one for each result.
        context: features that all examples have.
        max_batch_size: by default one request has all examples.

    Raises:
        InvalidInput: the list of examples is empty.
    """
    if not examples:
        raise InvalidInput("no examples, which a server refuses: give at least one")
    size = len(examples) if max_batch_size is None else max_batch_size
    requests = []
    for start in range(0, len(examples), int(checks.positive("max_batch_size", size))):
        request = method.request_type(model_spec=spec)
        if context is None:
            example_list = request.input.example_list
        else:
            example_list = request.input.example_list_with_context
            example_list.context.CopyFrom(context)
        example_list.examples.extend(examples[start : start + size])
        requests.append(request.SerializeToString())
    return requests


def read_classification(
    responses: list[serving_pb2.ClassificationResponse],
) -> Classification:
    """Returns labels and scores of all examples.

    Raises:
        InvalidAnswer: the examples have different numbers of classes.
    """
    examples = [
        example.classes for response in responses for example in response.result.classifications
    ]
    count = len(examples[0]) if examples else 0
    if any(len(classes) != count for classes in examples):
        raise InvalidAnswer("the examples have different numbers of classes")
    labels = np.empty((len(examples), count), dtype=object)
    labels[...] = [[entry.label for entry in classes] for classes in examples]
    scores = [[entry.score for entry in classes] for classes in examples]
    return Classification(labels, np.array(scores, np.float32).reshape(labels.shape))


def read_regression(responses: list[serving_pb2.RegressionResponse]) -> Array:
    """Returns a value for each example, float32."""
    values = [entry.value for response in responses for entry in response.result.regressions]
    return np.array(values, np.float32)


def metadata_request(spec: serving_pb2.ModelSpec) -> serving_pb2.GetModelMetadataRequest:
    """Returns a request for the signatures."""
    return serving_pb2.GetModelMetadataRequest(model_spec=spec, metadata_field=[_SIGNATURES])


def read_metadata(response: serving_pb2.GetModelMetadataResponse) -> ModelMetadata:
    """Returns the signatures that can be called; raises InvalidAnswer if the field is missing."""
    if _SIGNATURES not in response.metadata:
        raise InvalidAnswer(f"the metadata has no {_SIGNATURES!r}")
    # Any.Unpack compares names of messages, and ours has another name than TF Serving's.
    packed = response.metadata[_SIGNATURES].value
    try:
        definitions = serving_pb2.SignatureDefMap.FromString(packed).signature_def
    except DecodeError as error:
        raise InvalidAnswer(f"the signatures can't be parsed: {error}") from None
    return ModelMetadata(
        model=response.model_spec.name,
        version=response.model_spec.version.value,
        signatures={
            name: _signature(name, definitions[name])
            for name in sorted(definitions)
            if not name.startswith("__saved_model")  # the initializer, for example
        },
    )


def _signature(name: str, definition: serving_pb2.SignatureDef) -> Signature:
    return Signature(
        name,
        _infos(definition.inputs),
        _infos(definition.outputs),
        definition.method_name.removeprefix("tensorflow/serving/"),
        frozenset(definition.defaults),
    )


def _infos(infos: Mapping[str, Any]) -> dict[str, TensorInfo]:
    return {name: _info(name, infos[name]) for name in sorted(infos)}


def _info(name: str, info: Any) -> TensorInfo:
    sizes = tuple(None if dim.size < 0 else dim.size for dim in info.tensor_shape.dim)
    shape = None if info.tensor_shape.unknown_rank else sizes
    return TensorInfo(name, element_types.dtype_name(info.dtype), shape)


def status_request(spec: serving_pb2.ModelSpec) -> serving_pb2.GetModelStatusRequest:
    """Returns a request for the states of all versions, or of the one that ``spec`` selects."""
    return serving_pb2.GetModelStatusRequest(model_spec=spec)


def read_status(response: serving_pb2.GetModelStatusResponse) -> list[VersionStatus]:
    """Returns the states of versions, newest first."""
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
    """Returns a request that replaces the server's configuration.

    Args:
        config: a ModelServerConfig: its text, as in a models.config, or the message (ours or
            tensorflow-serving-api's).

    Raises:
        InvalidInput: the text can't be parsed, or the message is of another type.
    """
    request = serving_pb2.ReloadConfigRequest()
    if isinstance(config, str):
        from google.protobuf import text_format  # slow to import, and only needed here

        try:
            text_format.Parse(config, request.config)
        except text_format.ParseError as error:
            raise InvalidInput(f"config is not the text of a ModelServerConfig: {error}") from None
        return request
    if getattr(getattr(config, "DESCRIPTOR", None), "name", None) != "ModelServerConfig":
        raise InvalidInput(f"config is {type(config).__name__}; give a ModelServerConfig, or text")
    request.config.MergeFromString(config.SerializeToString())
    return request
