"""TF Serving's gRPC services: which function answers which method.

For each method one function reads a request and one answers it, or they raise; one wrapper turns
these into gRPC handlers.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable
from typing import Any

import grpc
from google.protobuf.message import DecodeError
from tensorflow_serving.apis import (
    classification_pb2,
    get_model_metadata_pb2,
    get_model_status_pb2,
    inference_pb2,
    model_management_pb2,
    regression_pb2,
)

from serving.server import inference, model_service, prediction, repeated
from serving.server.models import Models, TimeLeft, model_name
from serving.server.status import status_of

Read = Callable[[bytes], tuple[str, Any]]
Answer = Callable[[Models, Any, TimeLeft], bytes]


def _by_messages(answer: Callable[[Any, Any, TimeLeft], Any], request_type: Any) -> _Method:
    """A method whose requests are parsed, and whose response is a message."""
    has_spec = "model_spec" in request_type.DESCRIPTOR.fields_by_name

    def read(data: bytes) -> tuple[str, Any]:
        request = request_type.FromString(data)
        return model_name(request) if has_spec else "", request

    def answer_serialized(models: Models, request: Any, time_left_s: TimeLeft) -> bytes:
        serialized: bytes = answer(models, request, time_left_s).SerializeToString()
        return serialized

    return read, answer_serialized


# For each method how a request is read, which also tells the model's name, and who answers it.
_Method = tuple[Read, Answer]
_SERVICES: dict[str, dict[str, _Method]] = {
    "tensorflow.serving.PredictionService": {
        "Predict": (repeated.read, repeated.predict),
        "Classify": _by_messages(inference.classify, classification_pb2.ClassificationRequest),
        "Regress": _by_messages(inference.regress, regression_pb2.RegressionRequest),
        "MultiInference": _by_messages(
            inference.multi_inference, inference_pb2.MultiInferenceRequest
        ),
        "GetModelMetadata": _by_messages(
            prediction.get_model_metadata, get_model_metadata_pb2.GetModelMetadataRequest
        ),
    },
    "tensorflow.serving.ModelService": {
        "GetModelStatus": _by_messages(
            model_service.get_model_status, get_model_status_pb2.GetModelStatusRequest
        ),
        "HandleReloadConfigRequest": _by_messages(
            model_service.handle_reload_config_request, model_management_pb2.ReloadConfigRequest
        ),
    },
}

# Told of each call's end: method, model's name, status, seconds.
Observe = Callable[[str, str, grpc.StatusCode, float], None]


def handlers(
    models: Models,
    report: Callable[[str], None],
    observe: Observe = lambda method, model, code, seconds: None,
) -> tuple[grpc.GenericRpcHandler, ...]:
    """What a gRPC server needs to answer from ``models``.

    Args:
        models: the models.
        report: told of failures that are this program's own.
        observe: told of the end of every call.
    """

    def handle(method: str, read: Read, answer: Answer) -> grpc.RpcMethodHandler:
        # Bytes in and bytes out: whatever is wrong with them is then answered here.
        def handler(data: bytes, context: grpc.ServicerContext) -> bytes:
            began_s, name = time.perf_counter(), ""
            try:
                name, request = read(data)
                serialized = answer(models, request, context.time_remaining)
            except Exception as error:
                code, text = status_of(error)
                if code is grpc.StatusCode.INTERNAL and not isinstance(error, DecodeError):
                    report(traceback.format_exc())
            else:
                observe(method, name, grpc.StatusCode.OK, time.perf_counter() - began_s)
                return serialized
            observe(method, name, code, time.perf_counter() - began_s)
            context.abort(code, text)
            raise AssertionError("abort always raises")

        return grpc.unary_unary_rpc_method_handler(handler)

    return tuple(
        grpc.method_handlers_generic_handler(
            service, {name: handle(name, *method) for name, method in methods.items()}
        )
        for service, methods in _SERVICES.items()
    )
