import ml_dtypes
import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.framework import tensor_pb2

from serving import tensors
from serving.protos import serving_pb2

NUMBERS = [
    *("float32", "float64", "float16", "bfloat16", "complex64", "complex128", "bool"),
    *("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
]
SHAPES = [(), (0,), (1,), (7,), (2, 3), (2, 0, 3), (2, 1, 2, 1)]
Ours, Theirs = serving_pb2.TensorProto, tensor_pb2.TensorProto


def numbers(name: str, shape: tuple[int, ...]) -> np.ndarray:
    dtype = tensors.numpy_dtype(name)
    array = np.arange(np.prod(shape, dtype=int)).reshape(shape) - (0 if dtype.kind in "ub" else 2)
    if dtype.kind == "c":
        array = array + 0.5j * array
    array = np.asarray(array, dtype=dtype)
    if dtype.kind in "iu" and array.size:
        array.flat[-1] = np.iinfo(dtype).min
        array.flat[0] = np.iinfo(dtype).max
    return array


def assert_same(one: np.ndarray, other: np.ndarray):
    assert one.dtype == other.dtype
    assert one.shape == other.shape
    if one.dtype == object:
        assert one.tolist() == other.tolist()
    else:
        assert one.tobytes() == other.tobytes()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize("as_content", [True, False])
def test_what_we_write_tensorflow_reads(name: str, shape: tuple[int, ...], as_content: bool):
    array = numbers(name, shape)
    message = Ours()
    tensors.write(array, message, as_content=as_content)
    assert bool(message.tensor_content) == (as_content and array.size > 0)
    theirs = Theirs.FromString(message.SerializeToString())
    assert_same(tf.make_ndarray(theirs), array)
    assert tf.io.parse_tensor(theirs.SerializeToString(), array.dtype).shape == shape  # C++'s view


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", NUMBERS)
def test_what_tensorflow_writes_we_read(name: str, shape: tuple[int, ...]):
    array = numbers(name, shape)
    theirs = tf.make_tensor_proto(array)
    ours = Ours.FromString(theirs.SerializeToString())
    assert_same(tensors.read(ours), array)
    assert_same(tensors.read(theirs), array)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", NUMBERS)
def test_repeated_fields_are_read(name: str, shape: tuple[int, ...]):
    array = numbers(name, shape)
    message = Ours()
    tensors.write(array, message, as_content=False)
    assert_same(tensors.read(message), array)


@pytest.mark.parametrize("shape", SHAPES)
def test_strings_both_ways(shape: tuple[int, ...]):
    array = np.empty(shape, dtype=object)
    words = [b"", b"a\0", b"\xff\0\xfe", "grün".encode(), b"x" * 300, b"\0", b"end"]
    array.flat[:] = (words * 2)[: array.size]
    message = Ours()
    tensors.write(array, message)
    assert_same(tf.make_ndarray(Theirs.FromString(message.SerializeToString())), array)
    theirs = tf.make_tensor_proto(array, dtype=tf.string, shape=shape)
    assert_same(tensors.read(Ours.FromString(theirs.SerializeToString())), array)


@pytest.mark.parametrize(
    "array",
    [np.array(["a", "grün"]), np.array([b"a", "grün".encode()]), np.array(["a", "grün"], object)],
    ids=["U", "S", "object"],
)
def test_every_kind_of_string_array(array: np.ndarray):
    message = Ours()
    tensors.write(array, message)
    assert list(message.string_val) == [b"a", "grün".encode()]


def test_strings_in_tensor_content():
    # As TF Serving writes them when told to: all lengths as varints, then all bytes.
    words = [b"", b"a\0b", b"y" * 300]
    content = bytes([0, 3, 0xAC, 2]) + b"".join(words)
    message = Ours(dtype=serving_pb2.DT_STRING, tensor_content=content)
    message.tensor_shape.dim.add(size=3)
    assert tensors.read(message).tolist() == words
    parsed = tf.io.parse_tensor(message.SerializeToString(), tf.string)
    assert parsed.numpy().tolist() == words
    for wrong in (content[:-1], content + b"z", content[:3], b"\xff" * 12):
        message.tensor_content = wrong
        with pytest.raises(ValueError):
            tensors.read(message)


@pytest.mark.parametrize("view", [np.s_[::2], np.s_[:, ::-1], np.s_[..., 1]])
def test_views_are_written_in_order(view: object):
    array = np.arange(24, dtype=np.complex64).reshape(4, 6)[view]
    for as_content in (True, False):
        message = Ours()
        tensors.write(array.T, message, as_content=as_content)
        assert_same(tensors.read(message), np.ascontiguousarray(array.T))


def test_other_byte_order_is_turned():
    for as_content in (True, False):
        message = Ours()
        tensors.write(np.array([1, 2.5], dtype=">f4"), message, as_content=as_content)
        assert_same(tensors.read(message), np.array([1, 2.5], np.float32))


@pytest.mark.parametrize("values", [[], [7.0], [1.0, 2.0], [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]])
def test_short_lists_go_on_with_their_last_value_as_in_tensorflow(values: list[float]):
    message = Ours(dtype=serving_pb2.DT_FLOAT, float_val=values)
    message.tensor_shape.dim.add(size=4)
    reference = tf.io.parse_tensor(message.SerializeToString(), tf.float32).numpy()
    assert_same(tensors.read(message), reference)


def test_results_can_be_written_to():
    message = Ours()
    tensors.write(np.zeros(3), message)
    array = tensors.read(message)
    array[0] = 1
    assert array.sum() == 1


def malformed(**fields: object) -> serving_pb2.TensorProto:
    sizes = fields.pop("sizes", [2])
    message = Ours(**{"dtype": serving_pb2.DT_FLOAT, **fields})
    for size in sizes:
        message.tensor_shape.dim.add(size=size)
    return message


@pytest.mark.parametrize(
    "message",
    [
        malformed(sizes=[-1], float_val=[1]),
        malformed(sizes=[2**40, 2**40], float_val=[1]),
        malformed(sizes=[2**40], float_val=[1]),
        malformed(sizes=[0, 2**62, 2**62]),
        malformed(sizes=[1] * 300, float_val=[1]),
        malformed(dtype=999, float_val=[1, 2]),
        malformed(dtype=0),
        malformed(tensor_content=b"1234567"),
        malformed(sizes=[2**40], dtype=serving_pb2.DT_STRING, tensor_content=b"\x01a"),
        Ours(dtype=1, tensor_shape=serving_pb2.TensorShapeProto(unknown_rank=True)),
    ],
    ids=lambda message: str(message.SerializeToString()[:12]),
)
def test_malformed_tensors_are_refused_without_taking_memory(message: serving_pb2.TensorProto):
    with pytest.raises(ValueError):
        tensors.read(message)


@pytest.mark.parametrize(
    "array",
    [np.array(["2020-01-01"], "datetime64[D]"), np.zeros(1, "longdouble"), np.array([b"a", None])],
    ids=["datetime", "longdouble", "None"],
)
def test_what_can_not_be_sent_is_named(array: np.ndarray):
    with pytest.raises(ValueError, match=r"can't be sent|may hold"):
        tensors.write(array, Ours())


@pytest.mark.parametrize(
    ("values", "name", "expected"),
    [
        ([1, 2], "float32", np.array([1, 2], np.float32)),
        ([0, 255], "uint8", np.array([0, 255], np.uint8)),
        (1.5, "bfloat16", np.array(1.5, ml_dtypes.bfloat16)),
        ([], "int64", np.array([], np.int64)),
        ([True], "bool", np.array([True])),
        ([1j], "complex64", np.array([1j], np.complex64)),
        (["a\0", b"b"], "string", np.array(["a\0", b"b"], object)),
        (["a", b"\xff\0"], "string", np.array(["a", b"\xff\0"], object)),
        ([1, 2], None, np.array([1, 2])),
        (np.float64(3), "float32", np.array(3.0)),
        (np.arange(3), "float32", np.arange(3)),
    ],
)
def test_lists_become_what_the_signature_wants(values: object, name: str, expected: np.ndarray):
    assert_same(tensors.as_array(values, name), expected)


@pytest.mark.parametrize(
    ("values", "name"),
    [([1.5], "int32"), ([300], "uint8"), (["a"], "float32"), ([1], "string"), ([1j], "float32")],
)
def test_lists_that_would_be_spoilt_are_refused(values: object, name: str):
    with pytest.raises(ValueError):
        tensors.as_array(values, name)
