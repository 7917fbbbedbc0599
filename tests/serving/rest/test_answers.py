"""REST calls without a network, on the recorded models.

Paths, texts, codes and forms of answers are those of TF Serving's documentation and source. Values
are compared with gRPC's answers.
"""

from __future__ import annotations

import base64
import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import tensorflow as tf
from tensorflow_serving.apis import predict_pb2

from serving.server.calls import predict
from serving.server.frontend.concurrency import Turns
from serving.server.models import loading
from serving.server.models.registry import ModelRegistry, Snapshot
from serving.server.models.servables import Servable
from serving.server.rest.answers import Answers

RECORDED = Path(__file__).parents[1] / "recorded" / "models"

Call = Callable[..., tuple[int, Any]]


def publish(base: Path) -> None:
    """Writes a model with the dtypes and forms that the recorded ones lack."""

    def spec(dtype: tf.DType, *shape: int | None, name: str) -> tf.TensorSpec:
        return tf.TensorSpec(shape, dtype, name=name)

    @tf.function(input_signature=[spec(tf.float32, None, name="x")])
    def half_plus_two(x: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"y": x / 2 + 2}

    @tf.function(
        input_signature=[
            spec(tf.string, None, name="tag"),
            spec(tf.float32, None, 2, name="signal"),
            spec(tf.int64, None, name="count"),
        ]
    )
    def several(tag: tf.Tensor, signal: tf.Tensor, count: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"tag": tag, "tag_bytes": tag, "signal": signal, "count": count}

    @tf.function(input_signature=[spec(tf.float64, name="x")])
    def scalar(x: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"half": tf.cast(x, tf.half), "double": x}

    @tf.function(input_signature=[spec(tf.float32, None, name="x")])
    def complexes(x: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"c": tf.complex(x, x)}

    @tf.function(input_signature=[spec(tf.float32, None, name="x")])
    def total(x: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"sum": tf.reduce_sum(x)}

    @tf.function(input_signature=[spec(tf.half, None, name="x")])
    def halves(x: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"x": x}

    @tf.function(input_signature=[spec(tf.uint64, None, name="u"), spec(tf.bool, None, name="b")])
    def wide(u: tf.Tensor, b: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"u": u, "b": tf.logical_not(b)}

    signatures = {
        "serving_default": half_plus_two,
        **{
            f.python_function.__name__: f for f in (several, total, scalar, complexes, halves, wide)
        },
    }
    tf.saved_model.save(tf.Module(), str(base / "123"), signatures=signatures)


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModelRegistry]:
    base = tmp_path_factory.mktemp("m")
    publish(base)
    folders = {"m": base, "half_plus": RECORDED / "half_plus", "kitchen": RECORDED / "kitchen"}
    servables = {name: Servable(name, path, loading.loader()) for name, path in folders.items()}
    for servable in servables.values():
        servable.poll()
    registry = ModelRegistry(servables)
    registry._snapshot = Snapshot(servables, labels={"m": {"stable": 123}})
    yield registry
    for servable in servables.values():
        servable.stop()


@pytest.fixture
def call(registry: ModelRegistry) -> Call:
    answers = Answers(registry, Turns(4), pytest.fail)

    def call(path: str, body: object = b"", method: str = "POST") -> tuple[int, Any]:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        status, text = answers.answer(method, f"/v1/models{path}", data, lambda: 30.0)
        return status, json.loads(text)

    return call


def test_documented_calls(call: Call):
    predictions = (200, {"predictions": [2.5, 3.0, 4.5]})
    for path in ("/m", "/m/versions/123", "/m/labels/stable"):
        assert call(f"{path}:predict", {"instances": [1.0, 2.0, 5.0]}) == predictions
    assert call("/m:predict", {"instances": [{"x": 1}, {"x": 2}, {"x": 5}]}) == predictions
    assert call("/m:predict", {"inputs": [1, 2]}) == (200, {"outputs": [2.5, 3.0]})
    assert call("/m:predict", {"inputs": {"x": []}}) == (200, {"outputs": []})
    status = {
        "version": "123",
        "state": "AVAILABLE",
        "status": {"error_code": "OK", "error_message": ""},
    }
    for path in ("/m", "/m/versions/123", "/m/labels/stable"):
        assert call(path, method="GET") == (200, {"model_version_status": [status]})
    code, metadata = call("/m/metadata", method="GET")
    assert code == 200
    assert metadata["model_spec"] == {"name": "m", "signature_name": "", "version": "123"}
    signature = metadata["metadata"]["signature_def"]["signature_def"]["serving_default"]
    assert signature["inputs"]["x"]["dtype"] == "DT_FLOAT"
    assert signature["method_name"] == "tensorflow/serving/predict"


def test_several_inputs_by_rows_and_by_columns(call: Call):
    rows = [
        {"tag": "ü", "signal": [0.1, 2], "count": 2**53 + 1},
        {"tag": {"b64": "Zm9v"}, "signal": [1e10, float("-inf")], "count": -(2**63)},
    ]
    body = {"signature_name": "several", "instances": rows}
    encoded = {"b64": base64.b64encode("ü".encode()).decode()}
    assert call("/m:predict", body) == (
        200,
        {
            "predictions": [
                {"count": 2**53 + 1, "signal": [0.1, 2.0], "tag": "ü", "tag_bytes": encoded},
                {
                    "count": -(2**63),
                    "signal": [1e10, float("-inf")],
                    "tag": "foo",
                    "tag_bytes": {"b64": "Zm9v"},
                },
            ]
        },
    )
    columns = {"tag": ["a"], "signal": [[1, 2], [3, 4]], "count": [], "more": 1}
    code, answer = call("/m:predict", {"signature_name": "several", "inputs": columns})
    assert code == 200
    assert answer["outputs"]["signal"] == [[1.0, 2.0], [3.0, 4.0]]
    assert answer["outputs"]["count"] == []
    code, answer = call(
        "/m:predict", {"signature_name": "wide", "inputs": {"u": [2**64 - 1], "b": [True]}}
    )
    assert (code, answer) == (200, {"outputs": {"b": [False], "u": [2**64 - 1]}})
    code, answer = call("/m:predict", {"signature_name": "scalar", "inputs": 0.1})
    assert (code, answer) == (200, {"outputs": {"double": 0.1, "half": 0.0999755859}})


SEVERAL = {"signature_name": "several"}
ROW = {"tag": "a", "signal": [1, 2], "count": 1}
IN_ROW = "Failed to process element: 0 of 'instances' list. Error: INVALID_ARGUMENT: "


@pytest.mark.parametrize(
    ("body", "code", "text"),
    [
        (b"", 400, "JSON Parse error: The document is empty"),
        (b"{", 400, "JSON Parse error: Missing a name for object member. at offset: 1"),
        (b"[1 2]", 400, "Missing a comma or ] after an array element. at offset: 3"),
        (b'{"\xc3\xbc": 1 "b": 2}', 400, "Missing a comma or } after an object member."),
        (b'{"a": "\\ud800"}', 400, "The surrogate pair in string is invalid."),
        (b"{} 1", 400, "The document root must not be followed by other values. at offset: 3"),
        (b"[" * 100_000, 400, "nested too deeply"),
        (b"[1]", 400, "Is not object"),
        (b'{"instances": [1e999]}', 400, "Number too big to be stored in double."),
        ({}, 400, "Missing 'inputs' or 'instances' key"),
        ({"instances": [], "inputs": []}, 400, "only one of 'inputs' or 'instances'"),
        ({"instances": 1}, 400, "Excepting 'instances' to be an list/array"),
        ({"instances": []}, 400, "No values in 'instances' array"),
        ({"signature_name": 1}, 400, "'signature_name' key must be a string value."),
        (
            {"signature_name": "no", "instances": [1]},
            400,
            'Serving signature name: "no" not found in signature def',
        ),
        (
            {"instances": ["a"]},
            400,
            IN_ROW + 'JSON Value: "a" Type: String is not of expected type: float',
        ),
        ({"instances": [None]}, 400, "JSON Value: null Type: Null is not of expected type: float"),
        (
            {"instances": [16777216]},
            400,
            "Cannot convert JSON value: 16777216 to float without loss of precision.",
        ),
        ({"instances": [1e300]}, 400, "to float without loss of precision."),
        ({"instances": [[1, 2], [1]]}, 400, "Expecting tensor size: 2 but got: 1"),
        ({"instances": [[1, 2], [[1, 2]]]}, 400, "Expecting shape [2] but got: [1,2]"),
        (
            {"inputs": [[1, 2], [3]]},
            400,
            "Encountered list at unexpected size: 1 at level: 1 expected size: 2",
        ),
        (
            {"inputs": [[1], 2]},
            400,
            "JSON Value: 2 found at incorrect level: 2 in the JSON DOM. Expected at level: 2",
        ),
        ({"inputs": [1, [2]]}, 400, "Encountered list at unexpected level: 1 expected < 1"),
        ({"inputs": {"y": 1}}, 400, "Missing named input: x in 'inputs' object."),
        ({"instances": [{"y": 1}]}, 400, "JSON object: does not have named input: y"),
        ({"instances": [{"x": 1}, 1]}, 400, "Expecting object but got list at item 1"),
        ({"instances": [1, {"x": 1}]}, 400, "Expecting value/list but got object at item 1"),
        (SEVERAL | {"instances": [1]}, 400, "instances is a plain list, but expecting list of"),
        (SEVERAL | {"inputs": 1}, 400, "inputs is a plain value/list, but expecting an object"),
        (
            SEVERAL | {"instances": [{"tag": "a"}]},
            400,
            "keys must be equal to: count,signal,tag",
        ),
        (SEVERAL | {"instances": [ROW | {"count": 1.0}]}, 400, "is not of expected type: int64"),
        (SEVERAL | {"instances": [ROW | {"count": 2**63}]}, 400, "not of expected type: int64"),
        (SEVERAL | {"instances": [ROW | {"count": True}]}, 400, "Type: True is not of expected"),
        (SEVERAL | {"instances": [ROW | {"tag": {"b64": "!"}}]}, 400, "Unable to base64 decode"),
        (SEVERAL | {"instances": [ROW | {"tag": {"b": "a"}}]}, 400, "for base64 data"),
        ({"signature_name": "halves", "inputs": [1]}, 501, "JSON Value: 1 to type: half"),
        ({"signature_name": "complexes", "inputs": [1]}, 400, "tensor type: complex64"),
        (
            {"signature_name": "total", "instances": [1]},
            400,
            "Tensor name: sum has no shape information ",
        ),
    ],
)
def test_wrong_bodies(call: Call, body: object, code: int, text: str):
    status, answer = call("/m:predict", body)
    assert (status, list(answer)) == (code, ["error"])
    assert text in answer["error"]


def test_wrong_paths(call: Call):
    body = {"instances": [1]}
    missing = {"error": "Servable not found for request: Latest(half)"}
    assert call("/half:predict", body) == (404, missing)
    missing = {"error": "Servable not found for request: Specific(m, 7)"}
    assert call("/m/versions/7:predict", body) == (404, missing)
    assert call("/m/labels/no:predict", body)[0] == 400
    assert call("/m:guess", body) == (
        400,
        {"error": "Malformed request: POST /v1/models/m:guess"},
    )
    for method in ("PUT", "DELETE", "OPTIONS", "GET"):
        text = f"Malformed request: {method} /v1/models/m:predict"
        assert call("/m:predict", body, method) == (400, {"error": text})
    long = "9" * 30
    text = f"Failed to convert version: {long} to numeric."
    assert call(f"/m/versions/{long}:predict", body) == (400, {"error": text})
    assert call("", method="GET") == (400, {"error": "Missing model name in request."})
    text = "Could not find any versions of model no"
    assert call("/no", method="GET") == (404, {"error": text})


def test_classify_and_regress(call: Call):
    regress = {"signature_name": "regress", "examples": [{"x": 1.0}, {"x": [2.0]}]}
    assert call("/half_plus:regress", regress) == (200, {"results": [2.5, 3.0]})
    regress = {"signature_name": "regress", "context": {"x": 4.0}, "examples": [{}]}
    assert call("/half_plus:regress", regress) == (200, {"results": [4.0]})
    code, answer = call(
        "/half_plus:classify", {"signature_name": "classify", "examples": [{"x": 1.0}]}
    )
    assert code == 200
    ((label, score), *_) = answer["results"][0]
    assert isinstance(label, str) and isinstance(score, float)


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ({}, "When method is classify, key 'examples' is expected and was not found"),
        ({"examples": 1}, "Expecting 'examples' value to be an list/array"),
        ({"examples": []}, "'examples' value is an empty array"),
        ({"examples": [1]}, "Example must be JSON object but got JSON Number"),
        ({"examples": [{"x": None}]}, "Feature: x has element with unexpected JSON type: Null"),
        ({"examples": [{"x": [[1]]}]}, "Feature: x has element with unexpected JSON type: Array"),
        ({"examples": [{"x": [1, 2.5]}]}, "element type in feature: x expecting type: int64"),
        ({"examples": [{"x": 2**63}]}, "Feature: x has uint64 element. Only int64 is supported."),
        ({"context": 1, "examples": [{}]}, "Example must be JSON object but got JSON Number"),
    ],
)
def test_wrong_examples(call: Call, body: object, text: str):
    for method in ("classify", "regress"):
        status, answer = call(f"/half_plus:{method}", body)
        assert status == 400
        assert text in answer["error"]


def test_answers_are_grpcs(call: Call, registry: ModelRegistry):
    rng = np.random.default_rng(0)
    values = rng.normal(0, 1e6, 200).astype(np.float32) * 10.0 ** rng.integers(-20, 20, 200)
    values = values.astype(np.float32)
    request = predict_pb2.PredictRequest()
    request.model_spec.name = "m"
    request.inputs["x"].CopyFrom(tf.make_tensor_proto(values))
    response = predict.predict(registry, request, lambda: None)
    code, answer = call("/m:predict", {"instances": [float(value) for value in values]})
    assert code == 200
    expected = tf.make_ndarray(response.outputs["y"])
    np.testing.assert_array_equal(np.array(answer["predictions"], np.float32), expected)


@pytest.mark.parametrize(
    ("dtype", "values"),
    [
        ("int8", [-128, 127]),
        ("uint8", [0, 255]),
        ("int16", [-(2**15), 2**15 - 1]),
        ("int32", [-(2**31), 2**31 - 1]),
        ("uint32", [0, 2**32 - 1]),
        ("int64", [-(2**63), 2**63 - 1]),
        ("uint64", [0, 2**64 - 1]),
        ("float", [1.5, float("inf")]),
        ("double", [1e300, 0.1]),
        ("bool", [True, False]),
        ("string", ["", "\u00fc\0"]),
    ],
)
def test_every_type_comes_back(call: Call, dtype: str, values: list[Any]):
    for key, answered in (("instances", "predictions"), ("inputs", "outputs")):
        body = {"signature_name": f"echo_{dtype}", key: values}
        code, answer = call("/kitchen:predict", body)
        assert (code, answer) == (200, {answered: values})


def test_random_bodies_never_break_the_server(call: Call):
    rng = random.Random(0)
    leaves: list[Any] = [0, 1.5, -1, 2**70, True, None, "x", "\udc80", {"b64": "eA"}, 1e40, []]
    names = ["x", "tag", "signal", "count", "b64", "u", "b"]

    def value(depth: int) -> Any:
        if not depth or rng.random() < 0.3:
            return rng.choice(leaves)
        if rng.random() < 0.5:
            return [value(depth - 1) for _ in range(rng.randrange(4))]
        return {rng.choice(names): value(depth - 1) for _ in range(rng.randrange(4))}

    seen = set()
    for _ in range(2000):
        members = ["instances", "inputs", "examples", "context", "signature_name"]
        body = {name: value(3) for name in rng.sample(members, rng.randrange(1, 3))}
        if rng.random() < 0.7:
            body["signature_name"] = rng.choice(["several", "scalar", "wide", "serving_default"])
        data = bytearray(json.dumps(body).encode())
        if rng.random() < 0.2:
            data[rng.randrange(len(data))] = rng.randrange(256)
        method = rng.choice(["predict", "predict", "classify", "regress"])
        status, answer = call(f"/m:{method}", bytes(data))
        assert status in (200, 400, 501), (bytes(data), answer)
        seen.add(status)
    assert {200, 400} <= seen


def test_calls_share_their_turns_and_keep_their_deadlines(registry: ModelRegistry):
    turns = Turns(1)
    seen: list[tuple[str, str, grpc.StatusCode]] = []
    answers = Answers(
        registry,
        turns,
        pytest.fail,
        lambda method, model, code, s: seen.append((method, model, code)),
    )
    assert turns.take(lambda: None)
    arguments = "POST", "/v1/models/m:predict", b'{"instances": [1]}'
    assert answers.answer(*arguments, lambda: 0.01).status == 504
    turns.give_back()
    assert answers.answer(*arguments, lambda: 30.0).status == 200
    codes = grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.OK
    assert seen == [("predict", "m", code) for code in codes]
