"""Every element type that TensorFlow has, beside what TensorFlow itself reads and writes."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import ml_dtypes
import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.framework import tensor_pb2, types_pb2
from tensorflow_serving.apis import predict_pb2

from serving import element_types, tensors
from serving.client import encoding
from serving.server.models import loading
from serving.server.models.batching_parameters import BatchingParameters
from serving.server.models.registry import ModelRegistry
from serving.server.models.saved_model import SavedModel
from serving.server.models.servables import Servable
from tests.serving.in_process import Call, caller

NO_ARRAYS = {types_pb2.DT_RESOURCE: "resource", types_pb2.DT_VARIANT: "variant"}
TYPES = [
    tf.as_dtype(number)
    for number in types_pb2.DataType.values()
    if 0 < number < types_pb2.DT_FLOAT_REF and number not in NO_ARRAYS
]
OF_ML_DTYPES = [name for name in dir(ml_dtypes) if name.startswith(("float", "int", "uint"))]
RARE = [dtype for dtype in TYPES if dtype.is_quantized or dtype.name in OF_ML_DTYPES]


def message_of(dtype: tf.DType, shape: tuple[int, ...] = (3,)) -> tensor_pb2.TensorProto:
    """A tensor of 1, 0, 1, …; written by TensorFlow, if it has a kernel for the type."""
    plain = np.resize(np.array([1, 0], np.int8), shape)
    if dtype in RARE:
        content = plain.astype(dtype.as_numpy_dtype).tobytes()
        sizes = tf.TensorShape(shape).as_proto()
        number = dtype.as_datatype_enum
        return tensor_pb2.TensorProto(dtype=number, tensor_shape=sizes, tensor_content=content)
    tensor = tf.strings.as_string(plain) if dtype == tf.string else tf.cast(plain, dtype)
    return tensor_pb2.TensorProto.FromString(tf.io.serialize_tensor(tensor).numpy())


def parsed(message: Any, dtype: tf.DType) -> np.ndarray:
    """The array that TensorFlow's C++ reads; of a quantized type, as plain integers."""
    found = tf.io.parse_tensor(message.SerializeToString(), dtype).numpy()
    return np.array(found, object) if isinstance(found, bytes) else found  # a scalar string


def assert_same(found: np.ndarray, expected: np.ndarray):
    """Compares arrays; a quantized one may be compared with one of plain integers."""
    if expected.dtype.name in ("int2", "uint2", "int4", "uint4", "float4_e2m1fn"):
        # A byte has an element, and not all of its bits count.
        found, expected = found.astype(np.float32), expected.astype(np.float32)
    assert found.shape == expected.shape
    assert (
        found.tolist() == expected.tolist()
        if found.dtype == object
        else (found.tobytes() == expected.tobytes())
    )


@pytest.mark.parametrize("dtype", TYPES, ids=lambda dtype: dtype.name)
def test_tensors_of_every_type_are_read_and_written_as_by_tensorflow(dtype: tf.DType):
    for shape in (), (0,), (2, 0), (3,), (2, 1, 2), (150,):
        theirs = message_of(dtype, shape)
        expected = parsed(theirs, dtype)
        array = tensors.read(theirs)
        assert element_types.element_type(array) == dtype.name
        assert array.dtype == np.dtype(dtype.as_numpy_dtype)
        assert_same(array, expected)
        for as_content in (True, False):
            message = tensor_pb2.TensorProto()
            tensors.write(array, message, as_content=as_content)
            assert message.dtype == dtype.as_datatype_enum
            assert_same(parsed(message, dtype), expected)
            assert_same(tensors.read(message), expected)


@pytest.mark.parametrize("dtype", RARE, ids=lambda dtype: dtype.name)
def test_short_long_and_large_values_are_read_as_by_tensorflow(dtype: tf.DType):
    rng = random.Random(dtype.name)
    for count in range(6):
        message = tensor_pb2.TensorProto(dtype=dtype.as_datatype_enum)
        message.tensor_shape.dim.add(size=4)
        message.int_val.extend(rng.randrange(-(2**31), 2**31) for _ in range(count))
        message.half_val.extend(rng.randrange(2**16) for _ in range(count))
        message.float8_val = rng.randbytes(count)
        assert_same(tensors.read(message), parsed(message, dtype))


def test_types_without_arrays_and_references_are_refused():
    for number in types_pb2.DataType.values():
        if 0 < number < types_pb2.DT_FLOAT_REF and number not in NO_ARRAYS:
            continue
        message = tensor_pb2.TensorProto(dtype=number)
        if number not in NO_ARRAYS:  # TensorFlow can send resources and variants
            with pytest.raises(tf.errors.InvalidArgumentError, match="Cannot parse tensor"):
                tf.io.parse_tensor(message.SerializeToString(), tf.float32)
        with pytest.raises(ValueError, match=NO_ARRAYS.get(number, f"dtype {number}")):
            tensors.read(message)


def test_a_bool_of_two_is_refused_as_by_tensorflow():
    message = tensor_pb2.TensorProto(dtype=types_pb2.DT_BOOL, tensor_content=b"\1\2")
    message.tensor_shape.dim.add(size=2)
    with pytest.raises(tf.errors.InvalidArgumentError):
        parsed(message, tf.bool)
    with pytest.raises(ValueError, match="neither 0 nor 1"):
        tensors.read(message)


@pytest.mark.parametrize(
    ("values", "name"), [([8], "int4"), ([-1], "uint2"), ([200], "qint8"), ([1.5], "qint32")]
)
def test_numbers_that_do_not_fit_are_refused(values: list[float], name: str):
    with pytest.raises(ValueError, match=name):
        tensors.as_array(values, name)


@pytest.mark.parametrize("dtype", RARE, ids=lambda dtype: dtype.name)
def test_lists_become_arrays_of_the_rare_types(dtype: tf.DType):
    array = tensors.as_array([[1, 0, 1]], dtype.name)
    assert_same(array, parsed(message_of(dtype, (1, 3)), dtype))
    assert array.dtype == np.dtype(dtype.as_numpy_dtype)


def test_a_structure_of_the_callers_own_is_refused():
    for fields in [("x", "i1")], [("qint8", "i2")], [("qint8", "i1"), ("x", "i1")]:
        with pytest.raises(ValueError, match="can't be sent"):
            tensors.write(np.zeros(1, fields), tensor_pb2.TensorProto())


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with a signature for each type, which returns its input, and a constant."""
    base = tmp_path_factory.mktemp("types")
    signatures = {}
    v1 = tf.compat.v1
    with tf.Graph().as_default(), v1.Session() as session:
        for dtype in TYPES:
            x = v1.placeholder(dtype, [None])
            signatures[dtype.name] = v1.saved_model.predict_signature_def(
                {"x": x}, {"y": tf.identity(x), "one": tf.ones([1])}
            )
            signatures[f"{dtype.name}_in_batches"] = v1.saved_model.predict_signature_def(
                {"x": x}, {"y": tf.identity(x)}
            )
        builder = v1.saved_model.Builder(str(base / "1"))
        builder.add_meta_graph_and_variables(session, ["serve"], signatures)
        builder.save()
    return base


@pytest.fixture(scope="module", params=[False, True], ids=["lists", "content"])
def call(path: Path, request: pytest.FixtureRequest) -> Iterator[tuple[Call, bool]]:
    servable = Servable("types", path, loading.loader())
    servable.poll()
    registry = ModelRegistry({"types": servable})
    yield caller(registry, lambda text: pytest.fail(text), as_content=request.param), request.param
    servable.drop()


@pytest.mark.parametrize("dtype", TYPES, ids=lambda dtype: dtype.name)
def test_a_server_takes_and_returns_every_type(call: tuple[Call, bool], dtype: tf.DType):
    answer, as_content = call
    for shape in (3,), (0,), (2,):
        for _ in range(3):  # the later ones repeat the first
            request = predict_pb2.PredictRequest()
            request.model_spec.name = "types"
            request.model_spec.signature_name = dtype.name
            request.inputs["x"].CopyFrom(message_of(dtype, shape))
            code, text, data = answer("Predict", request.SerializeToString())
            assert code is grpc.StatusCode.OK, text
            found = predict_pb2.PredictResponse.FromString(data).outputs
            assert found["y"].dtype == dtype.as_datatype_enum
            assert_same(parsed(found["y"], dtype), parsed(request.inputs["x"], dtype))
            is_content = as_content and dtype != tf.string and shape != (0,)
            assert bool(found["y"].tensor_content) == is_content
            assert bool(found["one"].tensor_content) == as_content
            assert bool(found["one"].float_val) != as_content
            assert parsed(found["one"], tf.float32).tolist() == [1]
            # The client's arrays are those of tf.make_ndarray, where that knows the type.
            array = encoding.decode_predict_response(data).outputs["y"]
            assert_same(array, parsed(request.inputs["x"], dtype))


def test_a_server_refuses_a_bool_of_two_in_later_calls_too(call: tuple[Call, bool]):
    request = predict_pb2.PredictRequest()
    request.model_spec.name, request.model_spec.signature_name = "types", "bool"
    codes = []
    for content in b"\0\1", b"\0\1", b"\0\2":
        request.inputs["x"].CopyFrom(message_of(tf.bool, (2,)))
        request.inputs["x"].tensor_content = content
        codes.append(call[0]("Predict", request.SerializeToString())[:2])
    invalid = grpc.StatusCode.INVALID_ARGUMENT, "tensor parsing error: x"
    assert codes == [(grpc.StatusCode.OK, ""), (grpc.StatusCode.OK, ""), invalid]


def test_what_the_scheduler_can_not_join_runs_call_by_call(path: Path):
    rows: list[int] = []
    model = SavedModel(path / "1", BatchingParameters(max_batch_size=4), rows.append)
    batched = []
    for dtype in TYPES:
        signature = model.signatures[f"{dtype.name}_in_batches"]
        array = tensors.read(message_of(dtype))
        feeds = dict.fromkeys(signature.inputs.values(), array)
        (found,) = model.run(feeds, [*signature.outputs.values()])
        assert found.dtype == array.dtype
        assert_same(found, array)
        if rows == [3]:
            batched.append(dtype)
        rows.clear()
    assert batched == [dtype for dtype in TYPES if dtype == tf.bfloat16 or dtype not in RARE]
    model.close()
