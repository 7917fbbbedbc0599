"""TF Serving's gRPC services, answered from servables: its messages, status codes and texts.

A function for each method takes a request and gives the response or raises; one wrapper turns
these into gRPC handlers. Requests are checked here, before a model sees them: what TensorFlow would
say to a missing input is not what TF Serving says, and some models run without it all the same.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Mapping
from typing import Any

import grpc
import tensorflow as tf
from google.protobuf.message import DecodeError
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_pb2,
    predict_pb2,
)

from serving import tensors
from serving.savedmodel import SavedModel
from serving.servables import NotServed, Servable
from serving.tensors import Array

Servables = Mapping[str, Servable[SavedModel]]

DEFAULT_SIGNATURE = "serving_default"
_MAX_TEXT = 1024  # TF Serving cuts its texts there
_CODES = {code.value[0]: code for code in grpc.StatusCode}


class Refused(Exception):  # noqa: N818 - the name says what happened
    """A request that gets an error for an answer."""

    def __init__(self, code: grpc.StatusCode, text: str) -> None:
        super().__init__(text)
        self.code = code


def predict(
    servables: Servables, request: Any, timeout_s: float | None
) -> predict_pb2.PredictResponse:
    """PredictionService/Predict."""
    servable, number = _servable(servables, request)
    with servable.use(number) as (version, model):
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
    _say_version(response.model_spec, servable.name, version)
    response.model_spec.signature_name = key
    for name, array in zip(wanted, arrays, strict=True):
        tensors.write(array, response.outputs[name], as_content=False)
    return response


def get_model_metadata(
    servables: Servables, request: Any, timeout_s: float | None
) -> get_model_metadata_pb2.GetModelMetadataResponse:
    """PredictionService/GetModelMetadata."""
    _check_spec(request)
    if not request.metadata_field:
        raise _invalid("GetModelMetadataRequest must specify at least one metadata_field")
    for field in request.metadata_field:
        if field != "signature_def":
            raise _invalid(f"Metadata field {field} is not supported")
    servable, number = _servable(servables, request)
    with servable.use(number) as (version, model):
        signatures = get_model_metadata_pb2.SignatureDefMap(signature_def=model.signatures)
    response = get_model_metadata_pb2.GetModelMetadataResponse()
    _say_version(response.model_spec, servable.name, version)
    response.metadata["signature_def"].Pack(signatures)
    return response


def get_model_status(
    servables: Servables, request: Any, timeout_s: float | None
) -> get_model_status_pb2.GetModelStatusResponse:
    """ModelService/GetModelStatus."""
    _check_spec(request)
    number = _number(request.model_spec)
    name = request.model_spec.name
    states = servables[name].states() if name in servables else []
    if number is not None:
        states = [state for state in states if state.number == number]
    if not states:
        what = "any versions" if number is None else f"version {number}"
        raise Refused(grpc.StatusCode.NOT_FOUND, f"Could not find {what} of model {name}")
    response = get_model_status_pb2.GetModelStatusResponse()
    for state in states:
        entry = response.model_version_status.add()
        entry.version = state.number
        entry.state = get_model_status_pb2.ModelVersionStatus.State.Value(state.state)
        entry.status.SetInParent()
        if state.error is not None:
            code, text = _status(state.error)
            entry.status.error_code = code.value[0]
            entry.status.error_message = text
    return response


def handlers(
    servables: Servables, report: Callable[[str], None]
) -> tuple[grpc.GenericRpcHandler, ...]:
    """What a gRPC server needs to answer from ``servables``.

    Args:
        servables: the models by name.
        report: told of failures that are this program's own.
    """

    def handle(answer: Callable[..., Any], request_type: Any) -> grpc.RpcMethodHandler:
        # Bytes in and bytes out: whatever is wrong with them is then answered here.
        def handler(data: bytes, context: grpc.ServicerContext) -> bytes:
            try:
                request = request_type.FromString(data)
                response = answer(servables, request, context.time_remaining())
                serialized: bytes = response.SerializeToString()
                return serialized
            except Exception as error:
                code, text = _status(error)
                if code is grpc.StatusCode.INTERNAL and not isinstance(error, DecodeError):
                    report(traceback.format_exc())
            context.abort(code, text)
            raise AssertionError("abort always raises")

        return grpc.unary_unary_rpc_method_handler(handler)

    prediction = {
        "Predict": handle(predict, predict_pb2.PredictRequest),
        "GetModelMetadata": handle(
            get_model_metadata, get_model_metadata_pb2.GetModelMetadataRequest
        ),
    }
    model = {"GetModelStatus": handle(get_model_status, get_model_status_pb2.GetModelStatusRequest)}
    return (
        grpc.method_handlers_generic_handler("tensorflow.serving.PredictionService", prediction),
        grpc.method_handlers_generic_handler("tensorflow.serving.ModelService", model),
    )


def _servable(servables: Servables, request: Any) -> tuple[Servable[SavedModel], int | None]:
    _check_spec(request)
    spec = request.model_spec
    if not spec.name:
        raise _invalid("ModelSpec has no name specified.")
    number = _number(spec)
    if spec.name not in servables:
        raise NotServed(spec.name, number)
    return servables[spec.name], number


def _check_spec(request: Any) -> None:
    if not request.HasField("model_spec"):
        raise _invalid("Missing ModelSpec")


def _number(spec: model_pb2.ModelSpec) -> int | None:
    """The version asked for; this server gives out no labels yet."""
    if spec.WhichOneof("version_choice") == "version_label":
        raise _invalid(f"Unrecognized servable version label: {spec.version_label}")
    return spec.version.value if spec.HasField("version") else None


def _say_version(spec: model_pb2.ModelSpec, name: str, version: int) -> None:
    spec.name = name
    spec.version.value = version


def _feeds(definition: Any, inputs: Any) -> dict[str, Array]:
    """Arrays by the tensors to feed; inputs that have a default may be left out."""
    sent, known, defaults = set(inputs), set(definition.inputs), set(definition.defaults)
    if not len(known) - len(defaults) <= len(sent) <= len(known):
        raise _invalid(
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
            raise _invalid(
                f"Signature input alias: {alias}(feed name: {tensor}) not found in request and no "
                f"default value provided. Inputs expected to be in the request {_set(sent)}, or "
                f"default input alias set: {','.join(sorted(defaults))}"
            )
        try:
            feeds[tensor] = tensors.read(message)
        except ValueError:
            raise _invalid(f"tensor parsing error: {alias}") from None
    return feeds


def _wanted(definition: Any, output_filter: Any) -> list[str]:
    """Names of the outputs to compute."""
    wanted: list[str] = []
    for name in output_filter:
        if name not in definition.outputs:
            raise _invalid(
                f"output tensor alias not found in signature: {name} "
                f"Outputs expected to be in the set {_set(definition.outputs)}."
            )
        if name in wanted:
            raise _invalid(f"duplicate output tensor alias: {name}")
        wanted.append(name)
    return wanted or sorted(definition.outputs)


def _set(names: Any) -> str:
    return "{" + ",".join(sorted(names)) + "}"


def _invalid(text: str) -> Refused:
    return Refused(grpc.StatusCode.INVALID_ARGUMENT, text)


def _status(error: Exception) -> tuple[grpc.StatusCode, str]:
    """The gRPC status that tells a caller about an error."""
    if isinstance(error, Refused):
        code, text = error.code, str(error)
    elif isinstance(error, NotServed):
        code, text = grpc.StatusCode.NOT_FOUND, str(error)
    elif isinstance(error, tf.errors.OpError):
        code, text = _CODES.get(error.error_code, grpc.StatusCode.UNKNOWN), error.message
    else:
        code, text = grpc.StatusCode.INTERNAL, f"{type(error).__name__}: {error}"
    return code, text[:_MAX_TEXT]
