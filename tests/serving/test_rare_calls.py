"""Rare calls, in cases that were not recorded; the texts are those of TF Serving and TensorFlow."""

from __future__ import annotations

import math
import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import tensorflow as tf
from google.protobuf import text_format
from google.protobuf.message_factory import GetMessageClass
from tensorflow.core.framework import tensor_pb2
from tensorflow_serving.apis import get_model_status_pb2, predict_pb2

from serving import tensors
from serving.server.calls import model_service, predict
from serving.server.errors import StatusError
from serving.server.models import loading, model_config
from serving.server.models.batching_parameters import BatchingParameters
from serving.server.models.model_config import ModelConfig
from serving.server.models.registry import ModelRegistry
from serving.server.models.reloadable_registry import ReloadableRegistry
from serving.server.models.saved_model import SavedModel, Signature
from serving.server.models.servables import Servable
from tests.serving.in_process import caller, methods
from tests.serving.test_element_types import TYPES, assert_same, parsed

RECORDED = Path(__file__).parent / "recorded" / "models"
CASES = int(os.environ.get("FUZZ_CASES", "60"))  # for each method, and for tensors
SEED = int(os.environ.get("FUZZ_SEED", random.randrange(2**32)))


@pytest.fixture(scope="module")
def registry() -> Iterator[ModelRegistry]:
    servables = {}
    for name in "kitchen", "half_plus":
        servables[name] = Servable(name, RECORDED / name, loading.loader())
        servables[name].poll()
    yield ModelRegistry(servables)
    for servable in servables.values():
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


def test_an_example_that_is_no_text_is_an_invalid_argument(registry: ModelRegistry):
    spec = predict_pb2.PredictRequest()
    spec.model_spec.name = "half_plus"
    with registry.use(spec.model_spec) as (_, model):
        signature = model.signatures["regress"]
        feeds = {signature.inputs["inputs"]: np.array([b"\xff\x81"], object)}
        with pytest.raises(tf.errors.InvalidArgumentError, match="Could not parse example input"):
            model.run(feeds, [*signature.outputs.values()])


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


@pytest.fixture(scope="module")
def reloadable(tmp_path_factory: pytest.TempPathFactory) -> ReloadableRegistry:
    """A registry without real models: each has an empty version, wherever its folder is."""
    folder = tmp_path_factory.mktemp("empty")
    (folder / "1").mkdir()

    class Nothing:
        def close(self) -> None:
            pass

    def start(model: ModelConfig) -> Servable[Any]:
        servable = Servable(model.name, folder, lambda path: Nothing(), policy=model.policy)
        servable.poll()
        return servable

    return ReloadableRegistry(model_config.single_model("kitchen", folder), start)


FEATURES = 'features { feature { key: "x" value { float_list { value: 1 } } } }'
EXAMPLE = f"input {{ example_list {{ examples {{ {FEATURES} }} }} }}"
SPEC = 'model_spec { name: "kitchen" version { value: 2 } signature_name: "serving_default" }'
HALF_SPEC = 'model_spec { name: "half_plus" version { value: 5 } signature_name: "%s" }'
VALID = {
    "Predict": SPEC
    + 'inputs { key: "x" value { dtype: DT_FLOAT tensor_shape { dim { size: 1 } } float_val: 1 } }'
    + r'inputs { key: "y" value { dtype: DT_FLOAT tensor_content: "\0\0\200?" tensor_shape {} } }'
    + 'output_filter: "sum"',
    "Classify": HALF_SPEC % "classify" + EXAMPLE,
    "Regress": HALF_SPEC % "regress" + EXAMPLE,
    "MultiInference": f"tasks {{ {HALF_SPEC % 'regress'} "
    f'method_name: "tensorflow/serving/regress" }} {EXAMPLE}',
    "GetModelMetadata": SPEC + 'metadata_field: "signature_def"',
    "GetModelStatus": SPEC,
    "HandleReloadConfigRequest": "config { model_config_list { config { "
    'name: "kitchen" base_path: "/m" model_platform: "tensorflow" model_version_policy '
    '{ specific { versions: 1 } } version_labels { key: "stable" value: 1 } } } }',
}


@pytest.mark.parametrize("method", methods())
def test_mutated_requests_get_a_status(
    registry: ModelRegistry, reloadable: ReloadableRegistry, method: str
):
    print(f"FUZZ_SEED={SEED}")
    rng = random.Random(SEED)
    is_reload = method == "HandleReloadConfigRequest"
    reported: list[str] = []
    call = caller(reloadable if is_reload else registry, reported.append, timeout_s=1.0)
    request_type = GetMessageClass(methods()[method][1].input_type)
    valid = text_format.Parse(VALID[method], request_type()).SerializeToString()
    codes = {call(method, valid)[0]}
    assert codes == {grpc.StatusCode.OK}
    for case in range(CASES):
        data = bytearray(valid)
        for _ in range(rng.randrange(4)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        if case % 5 == 0:
            del data[rng.randrange(len(data)) :]
        if case % 7 == 0:  # a part twice
            start = rng.randrange(len(data) + 1)
            data[start:start] = data[rng.randrange(start + 1) : start]
        code, text, _ = call(method, bytes(data))
        codes.add(code)
        assert code is not grpc.StatusCode.UNKNOWN, bytes(data)
        if code is grpc.StatusCode.INTERNAL:
            assert text == "", bytes(data)
        assert not reported, (bytes(data), reported)
    assert grpc.StatusCode.INTERNAL in codes and len(codes) > 1


def random_tensor(rng: random.Random, dtype: tf.DType) -> tensor_pb2.TensorProto:
    message = tensor_pb2.TensorProto(dtype=dtype.as_datatype_enum)
    message.version_number = rng.randrange(3)
    message.tensor_shape.unknown_rank = rng.random() < 0.3
    for _ in range(rng.randrange(4)):
        message.tensor_shape.dim.add(size=rng.choice([-1, 0, 1, 1, 1, 2, 2, 3, 3]), name="d")
    count = math.prod(max(0, dim.size) for dim in message.tensor_shape.dim)
    if rng.random() < 0.5:
        size = count * dtype.size if rng.random() < 0.8 else rng.randrange(30)
        content = rng.randbytes(size)
        if dtype == tf.string:
            content = bytes(rng.randrange(4) for _ in range(count))
            content += rng.randbytes(sum(content) + (rng.random() < 0.2))
        elif dtype == tf.bool and rng.random() < 0.8:
            content = bytes(byte & 1 for byte in content)
        message.tensor_content = content
    for field in message.DESCRIPTOR.fields:
        if rng.random() < 0.3 or not field.is_repeated or field.message_type is not None:
            continue
        for _ in range(rng.randrange(5)):
            number = rng.randrange(-(2**31), 2**31)
            if field.name in ("uint32_val", "uint64_val", "bool_val"):
                number = abs(number)
            value = rng.randbytes(rng.randrange(4)) if field.name == "string_val" else number
            getattr(message, field.name).append(bool(value) if field.name == "bool_val" else value)
    message.float8_val = rng.randbytes(rng.randrange(5))
    return message


def test_random_tensors_are_read_and_written_as_by_tensorflow():
    print(f"FUZZ_SEED={SEED}")
    rng = random.Random(SEED)
    taken = refused = 0
    for _ in range(CASES * 10):
        dtype = rng.choice(TYPES)
        message = random_tensor(rng, dtype)
        try:
            theirs = parsed(message, dtype)
        except tf.errors.InvalidArgumentError:
            with pytest.raises(ValueError):
                print(message)
                tensors.read(message)
            refused += 1
            continue
        taken += 1
        found = tensors.read(message)
        assert_same(found, theirs)
        for as_content in (False, True):
            written = tensor_pb2.TensorProto()
            tensors.write(found, written, as_content=as_content)
            assert_same(parsed(written, dtype), theirs)
    assert taken > 0 and refused > 0
