"""Answers REST calls by the functions that answer gRPC's."""

from __future__ import annotations

import re
import time
import traceback
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple
from urllib.parse import unquote

import grpc
from tensorflow_serving.apis import (
    classification_pb2,
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_pb2,
    predict_pb2,
    regression_pb2,
)

from serving.server.calls import classify_regress, metadata, model_service, predict
from serving.server.calls.grpc_status import status_of
from serving.server.calls.model_specs import DEFAULT_SIGNATURE
from serving.server.calls.services import Observe
from serving.server.deadlines import TimeLeft
from serving.server.errors import StatusError, invalid_argument
from serving.server.frontend.concurrency import TOO_LATE, Turns
from serving.server.models.registry import ModelRegistry
from serving.server.rest import json_requests, json_responses

# The paths are TF Serving's, which does not regard upper and lower case of the fixed parts.
_VERSION = r"(?:/versions/(?P<version>[0-9]+)|/labels/(?P<label>[^/:]+))?"
_INFERENCE = re.compile(
    rf"/v1/models/(?P<name>[^/:]+){_VERSION}:(?P<method>classify|regress|predict)", re.IGNORECASE
)
_ABOUT_MODEL = re.compile(
    rf"/v1/models(?:/(?P<name>[^/:]+))?{_VERSION}(?:/(?P<metadata>metadata))?", re.IGNORECASE
)
_HTTP_STATUSES = {
    grpc.StatusCode.CANCELLED: 499,
    grpc.StatusCode.INVALID_ARGUMENT: 400,
    grpc.StatusCode.DEADLINE_EXCEEDED: 504,
    grpc.StatusCode.NOT_FOUND: 404,
    grpc.StatusCode.ALREADY_EXISTS: 409,
    grpc.StatusCode.PERMISSION_DENIED: 403,
    grpc.StatusCode.RESOURCE_EXHAUSTED: 429,
    grpc.StatusCode.FAILED_PRECONDITION: 400,
    grpc.StatusCode.ABORTED: 409,
    grpc.StatusCode.OUT_OF_RANGE: 400,
    grpc.StatusCode.UNIMPLEMENTED: 501,
    grpc.StatusCode.UNAVAILABLE: 503,
    grpc.StatusCode.UNAUTHENTICATED: 401,
}


class Answer(NamedTuple):
    """What a REST call is answered with: an HTTP status and a body of JSON."""

    status: int
    body: bytes


class Answers:
    """Answers REST calls; safe to share between threads.

    Args:
        registry: the models.
        turns: of inference calls, gRPC's included.
        report: gets the traceback of every internal error.
        observe: called at the end of every inference call.
    """

    def __init__(
        self,
        registry: ModelRegistry,
        turns: Turns,
        report: Callable[[str], None],
        observe: Observe = lambda method, model, code, seconds: None,
    ) -> None:
        self._registry, self._turns = registry, turns
        self._report, self._observe = report, observe

    def answer(self, http_method: str, path: str, body: bytes, time_left_s: TimeLeft) -> Answer:
        """Answers a call.

        Args:
            http_method: GET, for example.
            path: the path as it was sent, with its query.
            body: JSON, not compressed.
            time_left_s: of the call.
        """
        began_s, code = time.perf_counter(), grpc.StatusCode.OK
        inference = _INFERENCE.fullmatch(path) if http_method == "POST" else None
        about = _ABOUT_MODEL.fullmatch(path) if http_method == "GET" else None
        try:
            if inference:
                answer = Answer(200, self._infer(inference, body, time_left_s))
            elif about:
                answer = Answer(200, self._describe(about, time_left_s))
            else:
                raise invalid_argument(f"Malformed request: {http_method} {path}")
        except Exception as error:
            code, text = status_of(error)
            if code is grpc.StatusCode.INTERNAL:
                self._report(traceback.format_exc())
            answer = Answer(_HTTP_STATUSES.get(code, 500), json_responses.error_body(text))
        if inference:
            seconds = time.perf_counter() - began_s
            self._observe(inference["method"].lower(), unquote(inference["name"]), code, seconds)
        return answer

    def _infer(self, path: re.Match[str], body: bytes, time_left_s: TimeLeft) -> bytes:
        if not self._turns.take(time_left_s):
            raise StatusError(grpc.StatusCode.DEADLINE_EXCEEDED, TOO_LATE)
        try:
            spec, method = _model_spec(path), path["method"].lower()
            if method == "predict":
                return self._predict(spec, body, time_left_s)
            request: Any
            if method == "classify":
                request = classification_pb2.ClassificationRequest(model_spec=spec)
                json_requests.read_examples(body, request)
                classes = classify_regress.classify(self._registry, request, time_left_s)
                return json_responses.classify_body(classes)
            request = regression_pb2.RegressionRequest(model_spec=spec)
            json_requests.read_examples(body, request)
            values = classify_regress.regress(self._registry, request, time_left_s)
            return json_responses.regress_body(values)
        finally:
            self._turns.give_back()

    def _predict(self, spec: model_pb2.ModelSpec, body: bytes, time_left_s: TimeLeft) -> bytes:
        def inputs_of(signature: str) -> Mapping[str, Any]:
            key = signature or DEFAULT_SIGNATURE
            with self._registry.use(spec) as (_, model):
                found = model.signatures.get(key)
            if found is None:
                text = f'Serving signature name: "{key}" not found in signature def'
                raise invalid_argument(text)
            return {name: found.definition.inputs[name] for name in found.inputs}

        request = predict_pb2.PredictRequest(model_spec=spec)
        is_row_format = json_requests.read_predict(body, request, inputs_of)
        response = predict.predict(self._registry, request, time_left_s)
        return json_responses.predict_body(response, is_row_format)

    def _describe(self, path: re.Match[str], time_left_s: TimeLeft) -> bytes:
        if not path["name"]:
            raise invalid_argument("Missing model name in request.")
        spec = _model_spec(path)
        if not path["metadata"]:
            status = get_model_status_pb2.GetModelStatusRequest(model_spec=spec)
            return json_responses.status_body(
                model_service.get_model_status(self._registry, status, time_left_s)
            )
        request = get_model_metadata_pb2.GetModelMetadataRequest(
            model_spec=spec, metadata_field=["signature_def"]
        )
        return json_responses.metadata_body(
            metadata.get_model_metadata(self._registry, request, time_left_s)
        )


def _model_spec(path: re.Match[str]) -> model_pb2.ModelSpec:
    spec = model_pb2.ModelSpec(name=unquote(path["name"]))
    if path["version"]:
        if len(path["version"]) > 19 or int(path["version"]) >= 2**63:
            text = f"Failed to convert version: {path['version']} to numeric."
            raise invalid_argument(text)
        spec.version.value = int(path["version"])
    elif path["label"]:
        spec.version_label = unquote(path["label"])
    return spec
