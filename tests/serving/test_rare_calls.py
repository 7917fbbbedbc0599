"""Rare calls, in cases that were not recorded; the texts are those of TF Serving and TensorFlow."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import tensorflow as tf
from tensorflow_serving.apis import (
    get_model_status_pb2,
    model_service_pb2,
    predict_pb2,
    prediction_service_pb2,
)

from serving import tensors
from serving.server.calls import model_service, predict, services
from serving.server.errors import StatusError
from serving.server.models import loading
from serving.server.models.batching_parameters import BatchingParameters
from serving.server.models.registry import ModelRegistry
from serving.server.models.saved_model import SavedModel, Signature
from serving.server.models.servables import Servable

RECORDED = Path(__file__).parent / "recorded" / "models"
CASES = int(os.environ.get("FUZZ_CASES", "60"))  # for each method, and for tensors
SEED = int(os.environ.get("FUZZ_SEED", random.randrange(2**32)))
NUMERIC = [
    *("float32", "float64", "int32", "uint8", "int16", "int8"),
    *("int64", "bool", "uint16", "uint32", "uint64"),
]


@pytest.fixture(scope="module")
def registry() -> Iterator[ModelRegistry]:
    servable = Servable("kitchen", RECORDED / "kitchen", loading.loader())
    servable.poll()
    yield ModelRegistry({"kitchen": servable})
    servable.drop()


@pytest.fixture(scope="module")
def kitchen(registry: ModelRegistry) -> SavedModel:
    spec = predict_pb2.PredictRequest()
    spec.model_spec.name = "kitchen"
    with registry.use(spec.model_spec) as (_, model):
        return model


@pytest.mark.parametrize("label", ["stable", "nope", ""])
def test_a_status_does_not_depend_on_the_label(registry: ModelRegistry, label: str):
    request = get_model_status_pb2.GetModelStatusRequest()
    request.model_spec.name, request.model_spec.version_label = "kitchen", label
    found = model_service.get_model_status(registry, request, lambda: None)
    assert [status.version for status in found.model_version_status] == [2]
    request.model_spec.name = "nope"
    with pytest.raises(StatusError, match="Could not find any versions of model nope") as caught:
        model_service.get_model_status(registry, request, lambda: None)
    assert caught.value.code is grpc.StatusCode.NOT_FOUND


def test_the_initializer_answers_by_its_inputs(kitchen: SavedModel):
    request = predict_pb2.PredictRequest()
    request.model_spec.signature_name = "__saved_model_init_op"
    with pytest.raises(tf.errors.InvalidArgumentError, match="'NoOp', which produces no output"):
        predict.run(kitchen, request, lambda: None)
    request.inputs["x"].dtype = 1
    with pytest.raises(StatusError, match=r"does not match signature: 1!=0 .*Sent extra: \{x\}"):
        predict.run(kitchen, request, lambda: None)


def test_tensors_that_the_graph_lacks_are_reported_as_in_c(kitchen: SavedModel):
    known = next(iter(kitchen.signatures["serving_default"].outputs.values()))
    with pytest.raises(tf.errors.NotFoundError, match=r"unable to find feed output $"):
        kitchen.run({"": np.zeros(1)}, [known])  # a sparse input has no name
    with pytest.raises(tf.errors.NotFoundError, match="FetchOutputs node : not found"):
        kitchen.run({}, [""])
    name = known.partition(":")[0]
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"index too large, must be < \d"):
        kitchen.run({}, [f"{name}:99"])


def test_a_misspelt_input_is_refused_although_it_has_a_default():
    one = tf.make_tensor_proto(1.0)
    signature = Signature(None, {"x": "x:0", "y": "y:0"}, {}, {"y": one})
    with pytest.raises(StatusError, match=r"invalid name. Used request inputs: x, .*: x,z$"):
        predict._feeds(signature, {"x": one, "z": one})
    assert sorted(predict._feeds(signature, {"x": one})) == ["x:0", "y:0"]


def test_an_oversize_call_names_no_node(tmp_path: Path):
    spec = tf.TensorSpec([None], name="x")
    double = tf.function(lambda x: {"y": x * 2}, input_signature=[spec])
    tf.saved_model.save(tf.Module(), str(tmp_path / "1"), signatures=double)
    model = SavedModel(tmp_path / "1", BatchingParameters(max_batch_size=4))
    signature = model.signatures["serving_default"]
    feeds = dict.fromkeys(signature.inputs.values(), np.ones(5, np.float32))
    with pytest.raises(tf.errors.InvalidArgumentError) as caught:
        model.run(feeds, [*signature.outputs.values()])
    text = "Task size 5 is larger than maximum input batch size 4"
    assert caught.value.message == text
    model.close()


class AbortedError(Exception):
    """What a gRPC context raises."""


class Context:
    """The part of a gRPC context that handlers use."""

    code: grpc.StatusCode
    text: str

    def time_remaining(self) -> float:
        return 20.0

    def abort(self, code: grpc.StatusCode, text: str) -> None:
        self.code, self.text = code, text
        raise AbortedError


def methods() -> dict[str, Any]:
    files = prediction_service_pb2, model_service_pb2
    return {
        f"/{service.full_name}/{method.name}": method.input_type
        for file in files
        for service in file.DESCRIPTOR.services_by_name.values()
        for method in service.methods
        if method.name != "HandleReloadConfigRequest"  # it would load models of any folder
    }


@pytest.mark.parametrize("path", methods())
def test_mutated_requests_get_a_status(registry: ModelRegistry, path: str):
    print(f"FUZZ_SEED={SEED}")
    rng = random.Random(SEED)
    reported: list[str] = []
    (handlers,) = [
        found
        for each in services.handlers(registry, reported.append)
        if (found := each.service(Details(path)))
    ]
    valid = predict_pb2.PredictRequest()
    valid.model_spec.name = "kitchen"
    for name in "x", "y":
        valid.inputs[name].CopyFrom(tf.make_tensor_proto([1.0, 2.0]))
    for case in range(CASES):
        data = bytearray(valid.SerializeToString())
        for _ in range(rng.randrange(4)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        if case % 5 == 0:
            del data[rng.randrange(len(data)) :]
        context = Context()
        try:
            handlers.unary_unary(bytes(data), context)
        except AbortedError:
            assert context.code is not grpc.StatusCode.UNKNOWN, bytes(data)
            if context.code is grpc.StatusCode.INTERNAL:
                assert context.text == "", bytes(data)
        assert not reported, (bytes(data), reported)


class Details:
    """The call that a handler is looked up for."""

    def __init__(self, path: str) -> None:
        self.method = path
        self.invocation_metadata = ()


def test_random_tensors_are_read_as_by_tensorflow():
    print(f"FUZZ_SEED={SEED}")
    rng = random.Random(SEED)
    taken = 0
    for _ in range(CASES * 5):
        name = rng.choice(NUMERIC)
        dtype = tf.as_dtype(name)
        message = tf.make_tensor_proto(np.array([1, 0, 1][: rng.randrange(1, 4)], name))
        message.version_number = rng.randrange(3)
        if rng.random() < 0.5:
            message.tensor_content = message.tensor_content[: rng.randrange(30)]
        if rng.random() < 0.3:
            message.int_val.extend([rng.randrange(-(2**31), 2**31) for _ in range(3)])
        message.tensor_shape.unknown_rank = rng.random() < 0.3
        del message.tensor_shape.dim[rng.randrange(2) :]
        for _ in range(rng.randrange(3)):
            message.tensor_shape.dim.add(size=rng.choice([-1, 0, 1, 2, 3]), name="d")
        try:
            theirs = tf.io.parse_tensor(message.SerializeToString(), dtype).numpy()
        except tf.errors.InvalidArgumentError:
            with pytest.raises(ValueError):
                tensors.read(message)
            continue
        taken += 1
        found = tensors.read(message)
        assert (found.dtype, found.shape) == (theirs.dtype, theirs.shape), message
        assert found.tobytes() == theirs.tobytes(), message
    assert taken > 0
