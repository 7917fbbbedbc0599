import ml_dtypes
import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.framework import tensor_pb2

from serving import element_types, tensors
from serving.protos import serving_pb2

NUMBERS = [
    *("float32", "float64", "float16", "bfloat16", "complex64", "complex128", "bool"),
    *("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
]
SHAPES = [(), (0,), (1,), (7,), (2, 3), (2, 0, 3), (2, 1, 2, 1)]
Ours, Theirs = serving_pb2.TensorProto, tensor_pb2.TensorProto


def numbers(name: str, shape: tuple[int, ...]) -> np.ndarray:
    dtype = element_types.numpy_dtype(name)
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


@pytest.mark.parametrize("name", NUMBERS)
def test_numbers_are_what_tensorflow_writes_and_reads(name: str):
    for shape in SHAPES:
        array = numbers(name, shape)
        for as_content in (True, False):
            message = Ours()
            tensors.write(array, message, as_content=as_content)
            assert bool(message.tensor_content) == (as_content and array.size > 0)
            theirs = Theirs.FromString(message.SerializeToString())
            assert_same(tf.make_ndarray(theirs), array)
            parsed = tf.io.parse_tensor(theirs.SerializeToString(), array.dtype)  # C++'s view
            assert parsed.shape == shape
            assert_same(tensors.read(message), array)
        theirs = tf.make_tensor_proto(array)
        for message in (theirs, Ours.FromString(theirs.SerializeToString())):
            found = tensors.read(message)
            assert_same(found, array)
            found[...] = 0  # it can be written to


def test_strings_are_what_tensorflow_writes_and_reads():
    words = [b"", b"a\0", b"\xff\0\xfe", "grün".encode(), b"x" * 300, b"\0", b"end"]
    for shape in SHAPES:
        array = np.empty(shape, dtype=object)
        array.flat[:] = (words * 2)[: array.size]
        message = Ours()
        tensors.write(array, message)
        assert_same(tf.make_ndarray(Theirs.FromString(message.SerializeToString())), array)
        theirs = tf.make_tensor_proto(array, dtype=tf.string, shape=shape)
        assert_same(tensors.read(Ours.FromString(theirs.SerializeToString())), array)
    for mixed in (["a", "grün"], [b"a", "grün".encode()], np.array(["a", "grün"], object)):
        message = Ours()
        tensors.write(np.asarray(mixed), message)
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


@pytest.mark.parametrize(
    "array",
    [
        np.arange(24, dtype=np.complex64).reshape(4, 6)[::2, ::-1].T,
        np.arange(24, dtype=np.complex64).reshape(4, 6)[..., 1],
        np.array([1, 2.5], dtype=">f4"),
    ],
    ids=["view", "column", "byte order"],
)
def test_views_and_other_byte_orders_are_written_in_order(array: np.ndarray):
    for as_content in (True, False):
        message = Ours()
        tensors.write(array, message, as_content=as_content)
        expected = np.ascontiguousarray(array).astype(array.dtype.newbyteorder("<"))
        assert_same(tensors.read(message), expected)
    content = tensors.content(array)
    assert content is not None and content.tobytes() == expected.tobytes()


@pytest.mark.parametrize("values", [[], [7.0], [1.0, 2.0], [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]])
def test_short_lists_go_on_with_their_last_value_as_in_tensorflow(values: list[float]):
    message = Ours(dtype=serving_pb2.DT_FLOAT, float_val=values)
    message.tensor_shape.dim.add(size=4)
    reference = tf.io.parse_tensor(message.SerializeToString(), tf.float32).numpy()
    assert_same(tensors.read(message), reference)


@pytest.mark.parametrize("sizes", [[], [2], [1, 3]])
def test_an_unknown_rank_does_not_matter_as_in_tensorflow(sizes: list[int]):
    message = malformed(sizes=sizes, float_val=[1.0, 2.0])
    message.tensor_shape.unknown_rank = True
    reference = tf.io.parse_tensor(message.SerializeToString(), tf.float32).numpy()
    assert_same(tensors.read(message), np.asarray(reference))


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
