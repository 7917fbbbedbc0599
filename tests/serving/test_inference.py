"""The service's handlers, called in this process, against what TF Serving answered.

tests/processes/test_serving_recorded.py replays the recorded calls against a real server; here are
those of methods on examples, and cases that were not recorded: their texts are TF Serving's own.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from tensorflow_serving.apis import (
    classification_pb2,
    inference_pb2,
    predict_pb2,
    regression_pb2,
)

from serving.server import savedmodel, service
from serving.server.models import Models
from serving.server.servables import Servable

RECORDED = Path(__file__).parent / "recorded"
PREFIX = "/tensorflow.serving.PredictionService/"
RESPONSES = {
    "Predict": predict_pb2.PredictResponse,
    "Classify": classification_pb2.ClassificationResponse,
    "Regress": regression_pb2.RegressionResponse,
    "MultiInference": inference_pb2.MultiInferenceResponse,
}
EXCHANGES = [
    exchange
    for exchange in json.loads((RECORDED / "exchanges.json").read_text())
    if exchange["method"].removeprefix(PREFIX) in ("Classify", "Regress", "MultiInference")
]
OK = grpc.StatusCode.OK
INVALID = grpc.StatusCode.INVALID_ARGUMENT

# What a server answers to bytes: the code, the text, and the response's bytes.
Call = Callable[[str, bytes], tuple[grpc.StatusCode, str, bytes | None]]


class Context:
    """As much of a gRPC context as handlers use."""

    def __init__(self, timeout_s: float | None) -> None:
        self._timeout_s = timeout_s

    def time_remaining(self) -> float | None:
        return self._timeout_s

    def abort(self, code: grpc.StatusCode, text: str) -> None:
        raise Aborted(code, text)


class Aborted(Exception):  # noqa: N818 - the name says what happened
    pass


class Details:
    """As much of a call's details as handlers are found by."""

    invocation_metadata = ()

    def __init__(self, method: str) -> None:
        self.method = method


def caller(models: Models, timeout_s: float | None = 30) -> Call:
    found = service.handlers(models, lambda text: pytest.fail(text))

    def call(method: str, request: bytes) -> tuple[grpc.StatusCode, str, bytes | None]:
        for handler in found:
            method_handler = handler.service(Details(PREFIX + method))
            if method_handler is not None:
                try:
                    return OK, "", method_handler.unary_unary(request, Context(timeout_s))
                except Aborted as error:
                    return *error.args, None
        raise AssertionError(f"no handler of {method}")

    return call


@pytest.fixture(scope="module")
def recorded() -> Iterator[Call]:
    servables = {}
    for name in ("half_plus", "kitchen"):
        base = RECORDED / "models" / name
        servables[name] = Servable(name, base, savedmodel.loader())
        servables[name].poll()
    yield caller(Models(servables))


@pytest.mark.parametrize("exchange", [pytest.param(e, id=e["name"]) for e in EXCHANGES])
def test_answers_as_tf_serving_did(recorded: Call, exchange: dict[str, Any]):
    method = exchange["method"].removeprefix(PREFIX)
    code, details, answer = recorded(method, base64.b64decode(exchange["request"]))
    assert code.name == exchange["code"], details
    if answer is not None:
        theirs = RESPONSES[method].FromString(base64.b64decode(exchange["response"]))
        assert RESPONSES[method].FromString(answer) == theirs
    else:
        # `details_vary` marks texts that print a message: the order of its maps is anyone's.
        theirs, cut = exchange["details"], "{" if exchange.get("details_vary") else "\n\t [["
        assert details.partition(cut)[0] == theirs.partition(cut)[0]
        assert sorted(details.partition("\n\t [[")[0]) == sorted(theirs.partition("\n\t [[")[0])
