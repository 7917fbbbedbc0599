"""PredictionService/Predict.

Inputs are checked before the model runs: for a missing input, TensorFlow's error is not TF
Serving's, and some models would run without it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import grpc
from tensorflow_serving.apis import predict_pb2

from serving import tensors
from serving.server.calls import model_specs
from serving.server.deadlines import TimeLeft
from serving.server.errors import StatusError, invalid_argument
from serving.server.models.registry import ModelRegistry
from serving.server.models.saved_model import SavedModel, Signature
from serving.tensors import Array


def predict(
    registry: ModelRegistry, request: Any, time_left_s: TimeLeft, as_content: bool = False
) -> predict_pb2.PredictResponse:
    """Answers PredictionService/Predict; ``as_content`` is that of ``run``."""
    with registry.use(request.model_spec) as (version, model):
        response = run(model, request, time_left_s, as_content)
    model_specs.fill(response.model_spec, request.model_spec, version)
    return response


def run(
    model: SavedModel, request: Any, time_left_s: TimeLeft, as_content: bool = False
) -> predict_pb2.PredictResponse:
    """Answers a PredictRequest by ``model``; the request's model name is not used.

    The response has no ModelSpec yet.

    Args:
        model: the model.
        request: the PredictRequest.
        time_left_s: returns the seconds until the caller's deadline.
        as_content: whether numbers are sent in ``tensor_content`` instead of in lists.
    """
    signature = signature_of(model, request)
    feeds = _feeds(signature, request.inputs)
    names = output_names(signature, request.output_filter)
    if len(feeds) < len(signature.inputs):  # two inputs have one tensor
        fed = [*signature.inputs.values()]
        twice = next(tensor for tensor in fed if fed.count(tensor) > 1)
        raise invalid_argument(f'Endpoint "{twice}" fed more than once.')
    arrays = model.run(feeds, [signature.outputs[name] for name in names], time_left_s)
    response = predict_pb2.PredictResponse()
    for name, array in zip(names, arrays, strict=True):
        tensors.write(array, response.outputs[name], as_content=as_content)
    return response


def signature_of(model: SavedModel, request: Any) -> Signature:
    """Returns the signature that a PredictRequest names; raises StatusError if it is missing."""
    key = request.model_spec.signature_name or model_specs.DEFAULT_SIGNATURE
    signature = model.signatures.get(key)
    if signature is None:
        text = f'Serving signature key "{key}" not found.'
        raise StatusError(grpc.StatusCode.FAILED_PRECONDITION, text)
    return signature


def _feeds(signature: Signature, inputs: Any) -> dict[str, Array]:
    """Returns arrays by the names of the tensors to feed; inputs with a default may be missing."""
    known, defaults = signature.inputs, signature.defaults
    if len(inputs) > len(known) or (len(inputs) < len(known) and not defaults):
        sent = set(inputs)
        raise invalid_argument(
            f"input size does not match signature: {len(sent)}!={len(known)} "
            f"len({_set(sent)}) != len({_set(known)}). Sent extra: {_set(sent - set(known))}. "
            f"Missing but required: {_set(set(known) - sent)}."
        )
    feeds = {}
    for alias, tensor in known.items():
        message = inputs.get(alias) or defaults.get(alias)
        if message is None:
            raise invalid_argument(
                f"Signature input alias: {alias}(feed name: {tensor}) not found in request and no "
                f"default value provided. Inputs expected to be in the request {_set(inputs)}, or "
                f"default input alias set: {','.join(sorted(defaults))}"
            )
        try:
            feeds[tensor] = tensors.read(message)
        except ValueError:
            raise invalid_argument(f"tensor parsing error: {alias}") from None
    if not all(alias in known for alias in inputs):  # if a default replaces a misspelt input
        used = ",".join(sorted(set(inputs) & set(known)))
        raise invalid_argument(
            f"Inputs contains invalid name. Used request inputs: {used}, "
            f"request input: {','.join(sorted(inputs))}"
        )
    return feeds


def output_names(signature: Signature, output_filter: Any) -> Iterable[str]:
    """Returns the names of the outputs to compute; raises StatusError if the filter is wrong."""
    if not output_filter:
        return signature.outputs
    seen: set[str] = set()
    for name in output_filter:
        if name not in signature.outputs:
            raise invalid_argument(
                f"output tensor alias not found in signature: {name} "
                f"Outputs expected to be in the set {_set(signature.outputs)}."
            )
        if name in seen:
            raise invalid_argument(f"duplicate output tensor alias: {name}")
        seen.add(name)
    return list(output_filter)


def _set(names: Iterable[str]) -> str:
    """Returns names as TF Serving prints a set."""
    return "{" + ",".join(sorted(names)) + "}"
