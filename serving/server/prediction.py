"""PredictionService: Predict and GetModelMetadata.

Requests are checked here, before a model sees them: what TensorFlow would say to a missing input is
not what TF Serving says, and some models run without it all the same.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import grpc
from tensorflow_serving.apis import get_model_metadata_pb2, model_pb2, predict_pb2

from serving import tensors
from serving.server.models import Models, Refused, TimeLeft, invalid
from serving.tensors import Array

if TYPE_CHECKING:
    from serving.server.savedmodel import SavedModel, Signature

DEFAULT_SIGNATURE = "serving_default"


def predict(models: Models, request: Any, time_left_s: TimeLeft) -> predict_pb2.PredictResponse:
    """PredictionService/Predict."""
    with models.use(request.model_spec) as (version, model):
        response = run(model, request, time_left_s)
    say_model(response.model_spec, request.model_spec, version)
    return response


def run(model: SavedModel, request: Any, time_left_s: TimeLeft) -> predict_pb2.PredictResponse:
    """Answers a PredictRequest by ``model``, whatever model it names."""
    signature = signature_of(model, request)
    feeds = _feeds(signature, request.inputs)
    names = wanted(signature, request.output_filter)
    arrays = model.run(feeds, [signature.outputs[name] for name in names], time_left_s)
    response = predict_pb2.PredictResponse()
    for name, array in zip(names, arrays, strict=True):
        tensors.write(array, response.outputs[name], as_content=False)
    return response


def signature_of(model: SavedModel, request: Any) -> Signature:
    """The signature that a PredictRequest asks for; raises Refused if there is none."""
    key = request.model_spec.signature_name or DEFAULT_SIGNATURE
    signature = model.signatures.get(key)
    if signature is None or not signature.definition.method_name:
        text = f'Serving signature key "{key}" not found.'
        raise Refused(grpc.StatusCode.FAILED_PRECONDITION, text)
    return signature


def get_model_metadata(
    models: Models, request: Any, time_left_s: TimeLeft
) -> get_model_metadata_pb2.GetModelMetadataResponse:
    """PredictionService/GetModelMetadata."""
    if not request.metadata_field:
        raise invalid("GetModelMetadataRequest must specify at least one metadata_field")
    for field in request.metadata_field:
        if field != "signature_def":
            raise invalid(f"Metadata field {field} is not supported")
    with models.use(request.model_spec) as (version, model):
        definitions = {key: each.definition for key, each in model.signatures.items()}
    response = get_model_metadata_pb2.GetModelMetadataResponse()
    response.model_spec.name = request.model_spec.name
    response.model_spec.version.value = version
    signatures = get_model_metadata_pb2.SignatureDefMap(signature_def=definitions)
    response.metadata["signature_def"].Pack(signatures)
    return response


def say_model(spec: model_pb2.ModelSpec, asked: model_pb2.ModelSpec, version: int) -> None:
    """Fills in which version and signature answered a request for ``asked``."""
    spec.name = asked.name
    spec.version.value = version
    spec.signature_name = asked.signature_name or DEFAULT_SIGNATURE


def _feeds(signature: Signature, inputs: Any) -> dict[str, Array]:
    """Arrays by the tensors to feed; inputs that have a default may be left out."""
    known, defaults = signature.inputs, signature.defaults
    if len(inputs) > len(known) or (len(inputs) < len(known) and not defaults):
        sent = set(inputs)
        raise invalid(
            f"input size does not match signature: {len(sent)}!={len(known)} "
            f"len({_set(sent)}) != len({_set(known)}). Sent extra: {_set(sent - set(known))}. "
            f"Missing but required: {_set(set(known) - sent)}."
        )
    feeds = {}
    for alias, tensor in known.items():
        message = inputs.get(alias) or defaults.get(alias)
        if message is None:
            raise invalid(
                f"Signature input alias: {alias}(feed name: {tensor}) not found in request and no "
                f"default value provided. Inputs expected to be in the request {_set(inputs)}, or "
                f"default input alias set: {','.join(sorted(defaults))}"
            )
        try:
            feeds[tensor] = tensors.read(message)
        except ValueError:
            raise invalid(f"tensor parsing error: {alias}") from None
    return feeds


def wanted(signature: Signature, output_filter: Any) -> Iterable[str]:
    """Names of the outputs to compute; raises Refused if they are wrong."""
    if not output_filter:
        return signature.outputs
    seen: set[str] = set()
    for name in output_filter:
        if name not in signature.outputs:
            raise invalid(
                f"output tensor alias not found in signature: {name} "
                f"Outputs expected to be in the set {_set(signature.outputs)}."
            )
        if name in seen:
            raise invalid(f"duplicate output tensor alias: {name}")
        seen.add(name)
    return list(output_filter)


def _set(names: Iterable[str]) -> str:
    return "{" + ",".join(sorted(names)) + "}"
