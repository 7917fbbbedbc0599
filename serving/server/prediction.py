"""PredictionService: Predict and GetModelMetadata.

Requests are checked here, before a model sees them: what TensorFlow would say to a missing input is
not what TF Serving says, and some models run without it all the same.
"""

from __future__ import annotations

from typing import Any

import grpc
from tensorflow_serving.apis import get_model_metadata_pb2, model_pb2, predict_pb2

from serving import tensors
from serving.server.models import Models, Refused, invalid
from serving.tensors import Array

DEFAULT_SIGNATURE = "serving_default"


def predict(models: Models, request: Any, timeout_s: float | None) -> predict_pb2.PredictResponse:
    """PredictionService/Predict."""
    with models.use(request.model_spec) as (version, model):
        key = request.model_spec.signature_name or DEFAULT_SIGNATURE
        definition = model.signatures.get(key)
        if definition is None or not definition.method_name:
            text = f'Serving signature key "{key}" not found.'
            raise Refused(grpc.StatusCode.FAILED_PRECONDITION, text)
        feeds = _feeds(definition, request.inputs)
        wanted = _wanted(definition, request.output_filter)
        fetches = [definition.outputs[name].name for name in wanted]
        arrays = model.run(feeds, fetches, timeout_s)
    response = predict_pb2.PredictResponse()
    _say_version(response.model_spec, request.model_spec.name, version)
    response.model_spec.signature_name = key
    for name, array in zip(wanted, arrays, strict=True):
        tensors.write(array, response.outputs[name], as_content=False)
    return response


def get_model_metadata(
    models: Models, request: Any, timeout_s: float | None
) -> get_model_metadata_pb2.GetModelMetadataResponse:
    """PredictionService/GetModelMetadata."""
    if not request.metadata_field:
        raise invalid("GetModelMetadataRequest must specify at least one metadata_field")
    for field in request.metadata_field:
        if field != "signature_def":
            raise invalid(f"Metadata field {field} is not supported")
    with models.use(request.model_spec) as (version, model):
        signatures = get_model_metadata_pb2.SignatureDefMap(signature_def=model.signatures)
    response = get_model_metadata_pb2.GetModelMetadataResponse()
    _say_version(response.model_spec, request.model_spec.name, version)
    response.metadata["signature_def"].Pack(signatures)
    return response


def _say_version(spec: model_pb2.ModelSpec, name: str, version: int) -> None:
    spec.name = name
    spec.version.value = version


def _feeds(definition: Any, inputs: Any) -> dict[str, Array]:
    """Arrays by the tensors to feed; inputs that have a default may be left out."""
    sent, known, defaults = set(inputs), set(definition.inputs), set(definition.defaults)
    if not len(known) - len(defaults) <= len(sent) <= len(known):
        raise invalid(
            f"input size does not match signature: {len(sent)}!={len(known)} "
            f"len({_set(sent)}) != len({_set(known)}). Sent extra: {_set(sent - known)}. "
            f"Missing but required: {_set(known - sent - defaults)}."
        )
    feeds = {}
    for alias in sorted(known):
        tensor = definition.inputs[alias].name
        if alias in sent:
            message = inputs[alias]
        elif alias in defaults:
            message = definition.defaults[alias]
        else:
            raise invalid(
                f"Signature input alias: {alias}(feed name: {tensor}) not found in request and no "
                f"default value provided. Inputs expected to be in the request {_set(sent)}, or "
                f"default input alias set: {','.join(sorted(defaults))}"
            )
        try:
            feeds[tensor] = tensors.read(message)
        except ValueError:
            raise invalid(f"tensor parsing error: {alias}") from None
    return feeds


def _wanted(definition: Any, output_filter: Any) -> list[str]:
    """Names of the outputs to compute."""
    wanted: list[str] = []
    for name in output_filter:
        if name not in definition.outputs:
            raise invalid(
                f"output tensor alias not found in signature: {name} "
                f"Outputs expected to be in the set {_set(definition.outputs)}."
            )
        if name in wanted:
            raise invalid(f"duplicate output tensor alias: {name}")
        wanted.append(name)
    return wanted or sorted(definition.outputs)


def _set(names: Any) -> str:
    return "{" + ",".join(sorted(names)) + "}"
