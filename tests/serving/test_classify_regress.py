"""Handlers of methods on examples, called in this process, in cases that were not recorded.

The texts are TF Serving's. tests/processes/test_serving_recorded.py replays the recorded calls
against a real server.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import tensorflow as tf
from tensorflow_serving.apis import classification_pb2, inference_pb2, regression_pb2

from serving.server.calls import services, warmup
from serving.server.models import loading
from serving.server.models.registry import ModelRegistry
from serving.server.models.servables import Servable

RECORDED = Path(__file__).parent / "recorded"
PREFIX = "/tensorflow.serving.PredictionService/"
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


def caller(models: ModelRegistry, timeout_s: float | None = 30) -> Call:
    found = services.handlers(models, lambda text: pytest.fail(text))

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


NO_VALUES = "Expected output Tensor shape to be either [batch_size] or [batch_size, 1]"
# Outputs that TF Serving takes for classes, scores or values, and those that it does not.
OUTPUTS: dict[str, dict[str, Any]] = {
    "scores only": {"scores": [[1.0, 2.0], [3.0, 4.0]]},
    "classes only": {"classes": [["a", "b"], ["c", "d"]]},
    "no classes": {"classes": np.empty((2, 0), object), "scores": np.empty((2, 0), np.float32)},
    "flat scores": {"scores": [1.0, 2.0]},
    "integer scores": {"scores": [[1], [2]]},
    "number classes": {"classes": [[1.0], [2.0]]},
    "one score": {"scores": [[1.0]]},
    "one class": {"classes": [["a"]]},
    "widths differ": {"classes": [["a"], ["b"]], "scores": [[1.0, 2.0], [3.0, 4.0]]},
    "three": {"classes": [["a"]], "scores": [[1.0]], "more": [1.0]},
    "column": {"outputs": [[1.0], [2.0]]},
    "row": {"outputs": [1.0, 2.0]},
    "wide": {"outputs": [[1.0, 2.0], [3.0, 4.0]]},
    "scalar": {"outputs": 1.0},
    "short": {"outputs": [1.0]},
    "integers": {"outputs": [1, 2]},
    "other name": {"values": [1.0, 2.0]},
}


def constants(values: dict[str, Any]) -> Any:
    def compute(inputs: tf.Tensor) -> dict[str, tf.Tensor]:
        return {name: tf.identity(tf.constant(value)) for name, value in values.items()}

    spec = tf.TensorSpec([None], tf.string, name="inputs")
    return tf.function(compute, input_signature=[spec])


@pytest.fixture(scope="module")
def shaped(tmp_path_factory: pytest.TempPathFactory) -> Call:
    base = tmp_path_factory.mktemp("shaped")
    module = tf.Module()
    functions = {name.replace(" ", "_"): constants(values) for name, values in OUTPUTS.items()}
    spec = tf.TensorSpec([None], tf.string, name="inputs")
    two = [spec, tf.TensorSpec([None], tf.string, name="more")]
    functions["two_inputs"] = tf.function(lambda inputs, more: {"y": inputs}, input_signature=two)
    other = [tf.TensorSpec([None], tf.string, name="examples")]
    functions["misnamed"] = tf.function(
        lambda examples: {"outputs": tf.ones([1])}, input_signature=other
    )
    tf.saved_model.save(module, str(base / "1"), signatures=functions)
    servable = Servable("shaped", base, loading.loader(warmup.run))
    servable.poll()
    return caller(ModelRegistry({"shaped": servable}))


def asked(message: Any, signature: str, examples: int = 2) -> bytes:
    message.model_spec.name, message.model_spec.signature_name = "shaped", signature
    for _ in range(examples):
        message.input.example_list.examples.add()
    serialized: bytes = message.SerializeToString()
    return serialized


@pytest.mark.parametrize(
    ("signature", "expected"),
    [
        ("scores only", [[("", 1), ("", 2)], [("", 3), ("", 4)]]),
        ("classes only", [[("a", 0), ("b", 0)], [("c", 0), ("d", 0)]]),
        ("no classes", [[], []]),
        ("flat scores", "Expected Tensor shape: [batch_size num_classes] but got [2]"),
        ("integer scores", "Expected scores Tensor of DT_FLOAT. Got: DT_INT32"),
        ("number classes", "Expected classes Tensor of DT_STRING. Got: DT_FLOAT"),
        ("one score", "Expected scores output batch size of 2. Got: 1"),
        ("one class", "Expected classes output batch size of 2. Got: 1"),
        ("widths differ", "Tensors class and score should match in dim_size(1). Got 1 vs. 2"),
        ("three", "Expected one or two output Tensors, found 3"),
        ("two inputs", "Expected one input Tensor."),
        ("misnamed", "No classification inputs found in SignatureDef: "),
    ],
)
def test_classes_and_scores(shaped: Call, signature: str, expected: Any):
    request = asked(classification_pb2.ClassificationRequest(), signature.replace(" ", "_"))
    code, text, answer = shaped("Classify", request)
    if isinstance(expected, str):
        assert (code, text[: len(expected)]) == (INVALID, expected)
        return
    response = classification_pb2.ClassificationResponse.FromString(answer or b"")
    rows = response.result.classifications
    assert [[(entry.label, entry.score) for entry in row.classes] for row in rows] == expected
    assert response.model_spec.version.value == 1


@pytest.mark.parametrize(
    ("signature", "expected"),
    [
        ("column", [1, 2]),
        ("row", [1, 2]),
        ("wide", f"{NO_VALUES} but got [2,2]"),
        ("scalar", f"{NO_VALUES} but got []"),
        ("short", "Input batch size did not match output batch size: 2 vs. 1"),
        ("integers", "Expected output Tensor of DT_FLOAT.  Got: DT_INT32"),
        ("other name", "No regression outputs found in SignatureDef: "),
        ("misnamed", "No regression inputs found in SignatureDef: "),
        ("widths differ", "Expected one output Tensor."),
    ],
)
def test_values(shaped: Call, signature: str, expected: Any):
    request = asked(regression_pb2.RegressionRequest(), signature.replace(" ", "_"))
    code, text, answer = shaped("Regress", request)
    if isinstance(expected, str):
        assert (code, text[: len(expected)]) == (INVALID, expected)
        return
    response = regression_pb2.RegressionResponse.FromString(answer or b"")
    assert [entry.value for entry in response.result.regressions] == expected


def multi(*tasks: tuple[str, str, str]) -> bytes:
    message = inference_pb2.MultiInferenceRequest()
    for name, signature, method in tasks:
        task = message.tasks.add(method_name=f"tensorflow/serving/{method}")
        task.model_spec.name, task.model_spec.signature_name = name, signature
    message.input.example_list.examples.add()
    message.input.example_list.examples.add()
    return message.SerializeToString()


@pytest.mark.parametrize(
    ("tasks", "code", "text"),
    [
        ([], INVALID, "ModelSpec has no name specified."),
        ([("", "row", "regress")], INVALID, "ModelSpec has no name specified."),
        (
            [("shaped", "row", "regress"), ("", "column", "regress")],
            INVALID,
            "Found ModelSpec with an empty model name.",
        ),
        (
            [("shaped", "nope", "regress")],
            INVALID,
            "Requested signature not found in model graph: nope",
        ),
        (
            [("other", "row", "regress")],
            grpc.StatusCode.NOT_FOUND,
            "Servable not found for request: Latest(other)",
        ),
        ([("shaped", "row", "regress"), ("shaped", "column", "regress")], OK, ""),
    ],
)
def test_several_at_once(
    shaped: Call, tasks: list[tuple[str, str, str]], code: grpc.StatusCode, text: str
):
    answered = shaped("MultiInference", multi(*tasks))
    assert answered[:2] == (code, text)
    if code is OK:
        results = inference_pb2.MultiInferenceResponse.FromString(answered[2] or b"").results
        assert [result.model_spec.signature_name for result in results] == ["row", "column"]
        assert [len(result.regression_result.regressions) for result in results] == [2, 2]


@pytest.mark.parametrize("method", ["Predict", "Classify", "Regress", "GetModelMetadata"])
def test_a_request_without_a_spec(shaped: Call, method: str):
    assert shaped(method, b"")[:2] == (INVALID, "Missing ModelSpec")


def test_a_label_and_version_of_one_spec_are_the_last(shaped: Call):
    """They are a oneof: the later on the wire wins."""
    version, label = b"\x12\x02\x08\x01", b"\x22\x01L"
    spec = b"\x0a\x06shaped"
    for tail, text in (
        (version + label, "Unrecognized servable version label: L"),
        (label + version, 'Serving signature key "serving_default" not found.'),
        (
            b"\x12\x0b\x08" + b"\xff" * 9 + b"\x01",
            "Servable not found for request: Specific(shaped, -1)",
        ),
    ):
        data = spec + tail
        assert shaped("Predict", b"\x0a" + bytes([len(data)]) + data)[1] == text
