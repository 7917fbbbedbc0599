"""TF Serving's gRPC services: the functions that answer each method.

Each method has a function that reads a request and a function that answers it. Both may raise; one
wrapper turns them into a gRPC handler.
"""

from __future__ import annotations

import functools
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

from serving.server.calls import classify_regress, metadata, model_service, predict_fast_path
from serving.server.calls.grpc_status import status_of
from serving.server.calls.model_specs import model_name
from serving.server.deadlines import TimeLeft
from serving.server.models.registry import ModelRegistry

# Returns the model's name, for metrics, and the request in the form that the answer takes.
Read = Callable[[bytes], tuple[str, Any]]
Answer = Callable[[ModelRegistry, Any, TimeLeft], bytes]


def _with_messages(answer: Callable[[Any, Any, TimeLeft], Any], request_type: Any) -> _Method:
    """Returns a method that parses requests, and whose answer is a message."""
    has_spec = "model_spec" in request_type.DESCRIPTOR.fields_by_name

    def read(data: bytes) -> tuple[str, Any]:
        request = request_type.FromString(data)
        return model_name(request) if has_spec else "", request

    def answer_serialized(registry: ModelRegistry, request: Any, time_left_s: TimeLeft) -> bytes:
        serialized: bytes = answer(registry, request, time_left_s).SerializeToString()
        return serialized

    return read, answer_serialized


_Method = tuple[Read, Answer]
_SERVICES: dict[str, dict[str, _Method]] = {
    "tensorflow.serving.PredictionService": {
        "Predict": (predict_fast_path.read, predict_fast_path.predict),
        "Classify": _with_messages(
            classify_regress.classify, classification_pb2.ClassificationRequest
        ),
        "Regress": _with_messages(classify_regress.regress, regression_pb2.RegressionRequest),
        "MultiInference": _with_messages(
            classify_regress.multi_inference, inference_pb2.MultiInferenceRequest
        ),
        "GetModelMetadata": _with_messages(
            metadata.get_model_metadata, get_model_metadata_pb2.GetModelMetadataRequest
        ),
    },
    "tensorflow.serving.ModelService": {
        "GetModelStatus": _with_messages(
            model_service.get_model_status, get_model_status_pb2.GetModelStatusRequest
        ),
        "HandleReloadConfigRequest": _with_messages(
            model_service.handle_reload_config_request, model_management_pb2.ReloadConfigRequest
        ),
    },
}

# Gets the method, the model's name, the status and the seconds of every call that has ended.
Observe = Callable[[str, str, grpc.StatusCode, float], None]


def handlers(
    registry: ModelRegistry,
    report: Callable[[str], None],
    observe: Observe = lambda method, model, code, seconds: None,
    as_content: bool = False,
) -> tuple[grpc.GenericRpcHandler, ...]:
    """Returns the handlers of TF Serving's services for a gRPC server.

    Args:
        registry: the models.
        report: gets the traceback of every internal error.
        observe: called at the end of every call.
        as_content: whether Predict sends numbers in ``tensor_content`` instead of in lists.
    """

    def handle(method: str, read: Read, answer: Answer) -> grpc.RpcMethodHandler:
        if as_content and answer is predict_fast_path.predict:
            answer = functools.partial(predict_fast_path.predict, as_content=True)

        # gRPC passes bytes, so errors of parsing and serializing are answered here too.
        def handler(data: bytes, context: grpc.ServicerContext) -> bytes:
            began_s, name = time.perf_counter(), ""
            try:
                name, request = read(data)
                serialized = answer(registry, request, context.time_remaining)
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
