"""TF Serving's gRPC services: which function answers which method.

A function for each method takes a request and gives the response or raises; one wrapper turns these
into gRPC handlers.
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
    predict_pb2,
    regression_pb2,
)

from serving.server import inference, model_service, prediction
from serving.server.models import Models, invalid
from serving.server.status import status_of

# For each service its methods: who answers, and the type of request.
_SERVICES: dict[str, dict[str, tuple[Callable[..., Any], Any]]] = {
    "tensorflow.serving.PredictionService": {
        "Predict": (prediction.predict, predict_pb2.PredictRequest),
        "Classify": (inference.classify, classification_pb2.ClassificationRequest),
        "Regress": (inference.regress, regression_pb2.RegressionRequest),
        "MultiInference": (inference.multi_inference, inference_pb2.MultiInferenceRequest),
        "GetModelMetadata": (
            prediction.get_model_metadata,
            get_model_metadata_pb2.GetModelMetadataRequest,
        ),
    },
    "tensorflow.serving.ModelService": {
        "GetModelStatus": (
            model_service.get_model_status,
            get_model_status_pb2.GetModelStatusRequest,
        ),
        "HandleReloadConfigRequest": (
            model_service.handle_reload_config_request,
            model_management_pb2.ReloadConfigRequest,
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

    def handle(method: str, answer: Callable[..., Any], request_type: Any) -> grpc.RpcMethodHandler:
        has_spec = "model_spec" in request_type.DESCRIPTOR.fields_by_name

        # Bytes in and bytes out: whatever is wrong with them is then answered here.
        def handler(data: bytes, context: grpc.ServicerContext) -> bytes:
            began_s, name = time.perf_counter(), ""
            try:
                request = request_type.FromString(data)
                if has_spec and not request.HasField("model_spec"):
                    raise invalid("Missing ModelSpec")
                name = request.model_spec.name if has_spec else ""
                response = answer(models, request, context.time_remaining)
                serialized: bytes = response.SerializeToString()
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
