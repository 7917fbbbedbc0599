"""Methods on examples, in cases that were not recorded.

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
from serving.server.frontend import grpc_server
from serving.server.models import loading
from serving.server.models.registry import ModelRegistry
from serving.server.models.servables import Servable

RECORDED = Path(__file__).parent / "recorded"
PREFIX = "/tensorflow.serving.PredictionService/"
OK = grpc.StatusCode.OK
INVALID = grpc.StatusCode.INVALID_ARGUMENT

# What a server answers to bytes: the code, the text, and the response's bytes.
Call = Callable[[str, bytes], tuple[grpc.StatusCode, str, bytes | None]]


def caller(models: ModelRegistry) -> Call:
    server, target = grpc_server.make("127.0.0.1", 0)
    server.add_generic_rpc_handlers(services.handlers(models, lambda text: pytest.fail(text)))
    server.start()
    channel = grpc.insecure_channel(target)

    def call(method: str, request: bytes) -> tuple[grpc.StatusCode, str, bytes | None]:
        assert server  # which ends when nothing refers to it
        try:
            return OK, "", channel.unary_unary(PREFIX + method)(request, timeout=30)
        except grpc.RpcError as error:
            return error.code(), error.details(), None

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


def rows(response: Any) -> list[Any]:
    if isinstance(response, regression_pb2.RegressionResponse):
        return [entry.value for entry in response.result.regressions]
    rows = response.result.classifications
    return [[(entry.label, entry.score) for entry in row.classes] for row in rows]


@pytest.mark.parametrize(
    ("method", "signature", "expected"),
    [
        ("Classify", "scores only", [[("", 1), ("", 2)], [("", 3), ("", 4)]]),
        ("Classify", "classes only", [[("a", 0), ("b", 0)], [("c", 0), ("d", 0)]]),
        ("Classify", "no classes", [[], []]),
        (
            "Classify",
            "flat scores",
            "Expected Tensor shape: [batch_size num_classes] but got [2]",
        ),
        ("Classify", "integer scores", "Expected scores Tensor of DT_FLOAT. Got: DT_INT32"),
        ("Classify", "number classes", "Expected classes Tensor of DT_STRING. Got: DT_FLOAT"),
        ("Classify", "one score", "Expected scores output batch size of 2. Got: 1"),
        ("Classify", "one class", "Expected classes output batch size of 2. Got: 1"),
        (
            "Classify",
            "widths differ",
            "Tensors class and score should match in dim_size(1). Got 1 vs. 2",
        ),
        ("Classify", "three", "Expected one or two output Tensors, found 3"),
        ("Classify", "two inputs", "Expected one input Tensor."),
        ("Regress", "column", [1, 2]),
        ("Regress", "row", [1, 2]),
        ("Regress", "wide", f"{NO_VALUES} but got [2,2]"),
        ("Regress", "scalar", f"{NO_VALUES} but got []"),
        ("Regress", "short", "Input batch size did not match output batch size: 2 vs. 1"),
        ("Regress", "integers", "Expected output Tensor of DT_FLOAT.  Got: DT_INT32"),
        ("Regress", "other name", "No regression outputs found in SignatureDef: "),
        ("Regress", "misnamed", "No regression inputs found in SignatureDef: "),
    ],
)
def test_outputs_become_classes_scores_or_values(
    shaped: Call, method: str, signature: str, expected: Any
):
    message, response_type = {
        "Classify": (
            classification_pb2.ClassificationRequest(),
            classification_pb2.ClassificationResponse,
        ),
        "Regress": (regression_pb2.RegressionRequest(), regression_pb2.RegressionResponse),
    }[method]
    message.model_spec.name = "shaped"
    message.model_spec.signature_name = signature.replace(" ", "_")
    for _ in range(2):
        message.input.example_list.examples.add()
    code, text, answer = shaped(method, message.SerializeToString())
    if isinstance(expected, str):
        assert (code, text[: len(expected)]) == (INVALID, expected)
        return
    response = response_type.FromString(answer or b"")
    assert rows(response) == expected
    assert response.model_spec.version.value == 1


@pytest.mark.parametrize(
    ("tasks", "code", "text"),
    [
        ([], INVALID, "ModelSpec has no name specified."),
        ([("", "row")], INVALID, "ModelSpec has no name specified."),
        ([("shaped", "row"), ("", "column")], INVALID, "Found ModelSpec with an empty model name."),
        ([("shaped", "nope")], INVALID, "Requested signature not found in model graph: nope"),
        (
            [("other", "row")],
            grpc.StatusCode.NOT_FOUND,
            "Servable not found for request: Latest(other)",
        ),
        ([("shaped", "row"), ("shaped", "column")], OK, ""),
    ],
)
def test_several_at_once(
    shaped: Call, tasks: list[tuple[str, str]], code: grpc.StatusCode, text: str
):
    message = inference_pb2.MultiInferenceRequest()
    for name, signature in tasks:
        task = message.tasks.add(method_name="tensorflow/serving/regress")
        task.model_spec.name, task.model_spec.signature_name = name, signature
    for _ in range(2):
        message.input.example_list.examples.add()
    answered = shaped("MultiInference", message.SerializeToString())
    assert answered[:2] == (code, text)
    if code is OK:
        results = inference_pb2.MultiInferenceResponse.FromString(answered[2] or b"").results
        assert [result.model_spec.signature_name for result in results] == ["row", "column"]
        assert [len(result.regression_result.regressions) for result in results] == [2, 2]


def test_a_request_without_a_spec(shaped: Call):
    for method in ("Classify", "Regress"):
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
