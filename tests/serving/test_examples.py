"""tf.Example as the client writes it, read by TensorFlow."""

import ml_dtypes
import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.example import example_pb2

from serving.client import InvalidInput, examples


def read(features: object) -> list[dict[str, tuple[str, list[object]]]]:
    """Kind and values of each feature of each example, as TensorFlow's messages see them."""
    parsed = [
        example_pb2.Example.FromString(example.SerializeToString())
        for example in examples.encode(features)
    ]
    return [
        {
            name: (kind := feature.WhichOneof("kind"), list(getattr(feature, kind).value))
            for name, feature in example.features.feature.items()
        }
        for example in parsed
    ]


def test_columns_become_what_tensorflow_parses():
    columns = {
        "pixels": np.arange(12, dtype=np.float32).reshape(2, 3, 2),
        "half": np.array([[1.5], [2.5]], ml_dtypes.bfloat16),
        "count": np.array([7, -(2**62)]),
        "flag": np.array([True, False]),
        "word": np.array(["grün", b"\xff\0"], object),
        "many": [[1.0], [2.0, 3.0]],
    }
    spec = {
        "pixels": tf.io.FixedLenFeature([3, 2], tf.float32),
        "half": tf.io.FixedLenFeature([1], tf.float32),
        "count": tf.io.FixedLenFeature([], tf.int64),
        "flag": tf.io.FixedLenFeature([], tf.int64),
        "word": tf.io.FixedLenFeature([], tf.string),
        "many": tf.io.RaggedFeature(tf.float32),
    }
    encoded = [example.SerializeToString() for example in examples.encode(columns)]
    parsed = tf.io.parse_example(encoded, spec)
    np.testing.assert_array_equal(parsed["pixels"], columns["pixels"])
    assert parsed["half"].numpy().tolist() == [[1.5], [2.5]]
    assert parsed["count"].numpy().tolist() == [7, -(2**62)]
    assert parsed["flag"].numpy().tolist() == [1, 0]
    assert parsed["word"].numpy().tolist() == ["grün".encode(), b"\xff\0"]
    assert parsed["many"].to_list() == [[1.0], [2.0, 3.0]]


def test_rows_and_columns_say_the_same():
    rows = [{"a": 1, "b": "x"}, {"a": 2, "b": "y"}]
    assert read(rows) == read({"a": [1, 2], "b": ["x", "y"]})
    assert read(rows)[1] == {"a": ("int64_list", [2]), "b": ("bytes_list", [b"y"])}


def test_a_feature_has_one_kind_in_all_examples():
    first, second, third = read([{"a": 1}, {"a": 2.5}, {"b": [], "a": None}])
    assert first == {"a": ("float_list", [1.0])}
    assert second == {"a": ("float_list", [2.5])}
    assert third == {"b": ("float_list", [])}
    assert read([{"a": np.zeros(0, np.int8)}]) == [{"a": ("int64_list", [])}]
    with pytest.raises(InvalidInput, match="'a': text and numbers"):
        read([{"a": 1}, {"a": "x"}])


@pytest.mark.parametrize(
    ("features", "message"),
    [
        ({"a": [1, 2], "b": [1]}, "'a' has 2, 'b' has 1"),
        ({"a": "text"}, "'a' has no examples"),
        ({"a": np.float32(1)}, "'a' has no examples"),
        ({"a": [1j]}, "'a'.*not complex128"),
        ({"a": [2**63]}, "'a'"),
        ({"a": [b"x", [None]]}, "'a'"),
        (np.zeros(3), "features are ndarray"),
        ([1, 2], "features are list"),
    ],
)
def test_what_can_not_be_an_example_is_named(features: object, message: str):
    with pytest.raises(InvalidInput, match=message):
        examples.encode(features)
    with pytest.raises(InvalidInput, match="context is list"):
        examples.encode_one([1])  # type: ignore[arg-type]
