"""The kinds of arrays that ``Model.fit`` takes, each compared with what Keras makes of it."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
import scipy.sparse
import tensorflow as tf

import tfdp
from tfdp.data.sources import as_data

ROWS = np.array([[0.0, 1.5, 0.0], [2.5, 0.0, 0.0], [0.0, 0.0, 0.0], [0.0, 0.0, -1.0]])
WORDS = np.array(["a b", "", "c", "dé"], dtype=object)


class Table:
    """A DataFrame, or a Series: what is used of pandas, which is not installed."""

    def __init__(self, values: np.ndarray) -> None:
        self.values, self.ndim = values, values.ndim

    def to_numpy(self) -> np.ndarray:
        return self.values


Table.__module__ = "pandas.core.frame"


class TorchTensor:
    def detach(self) -> Any:
        return self

    cpu = detach

    def numpy(self) -> np.ndarray:
        return ROWS.astype("float32")


TorchTensor.__module__ = "torch"

KINDS = {
    "float64": (ROWS, ROWS),
    "a tensor": (tf.constant(ROWS), ROWS),
    "a variable": (lambda: tf.Variable(ROWS), ROWS),
    "a variable of Keras": (lambda: keras.Variable(ROWS, dtype="float32"), ROWS),
    "DataFrame": (Table(ROWS), ROWS),
    "Series": (Table(ROWS[:, 0]), ROWS[:, :1]),
    "torch": (TorchTensor(), ROWS),
    "tf.SparseTensor": (tf.sparse.from_dense(ROWS), ROWS),
    "CSR": (scipy.sparse.csr_matrix(ROWS), ROWS),
    "COO, not in order": (
        scipy.sparse.coo_matrix(([-1.0, 2.5, 1.5], ([3, 1, 0], [2, 0, 1])), (4, 3)),
        ROWS,
    ),
    "numbers as objects": (ROWS.astype(object), ROWS),
}


@pytest.mark.parametrize("kind", KINDS)
def test_arrays_of_any_library_are_read_alike(kind: str) -> None:
    value, expected = KINDS[kind]
    source = as_data(value() if callable(value) else value, np.arange(4))
    assert isinstance(source, tfdp.Source)
    assert len(source) == 4
    spec, _ = source.element_spec()
    for places in ([3, 0, 3], [2]):
        rows, numbers = source.read(tf.constant(places, tf.int64))
        if isinstance(rows, tf.SparseTensor):
            assert spec == tf.SparseTensorSpec([3], tf.float32)
            rows = tf.sparse.to_dense(rows)
        else:
            assert spec.shape == expected.shape[1:]
        assert rows.dtype == tf.float32
        np.testing.assert_array_equal(rows, expected[places].astype("float32"))
        assert numbers.numpy().tolist() == places


@pytest.mark.parametrize("value", [WORDS, tf.constant(WORDS), WORDS.tolist(), Table(WORDS)])
def test_strings_of_any_kind_are_read_alike(value: Any) -> None:
    source = as_data(value)
    assert isinstance(source, tfdp.Source)
    (texts,) = source.read(tf.constant([3, 1], tf.int64))
    assert texts.dtype == tf.string
    assert [text.decode() for text in np.ravel(texts.numpy())] == ["dé", ""]
    assert source.sha256() != as_data(WORDS[::-1]).sha256()
    assert source.sample_sha256() != as_data(WORDS[::-1]).sample_sha256()


def test_ragged_rows_keep_their_lengths() -> None:
    ragged = tf.ragged.constant([[1.5], [], [2.5, 3.5], [4.5]], dtype=tf.float64)
    source = as_data({"r": ragged})
    assert source.element_spec() == ({"r": tf.TensorSpec([None], tf.float32)},)
    (features,) = source.read(tf.constant([2, 1, 0], tf.int64))
    assert features["r"].to_list() == [[2.5, 3.5], [], [1.5]]
    assert source.sha256() != as_data({"r": ragged[::-1]}).sha256()


def test_a_list_of_arrays_is_a_structure() -> None:
    source = as_data([ROWS, ROWS[:, 0]], [ROWS[:, 1], ROWS[:, 2]], np.ones(4))
    features, labels, weights = source.read(tf.constant([1], tf.int64))
    assert [type(each) for each in (features, labels, weights)] == [tuple] * 3
    assert features[0].numpy().tolist() == ROWS[[1]].tolist()
    assert [each.numpy().tolist() for each in weights] == [[1.0], [1.0]], "of each output"


def test_a_digest_of_a_few_rows_takes_the_first_and_the_last() -> None:
    rows = np.zeros((1000, 3))
    first, last = rows.copy(), rows.copy()
    first[0, 0] = last[-1, 2] = 1
    digests = {tfdp.from_arrays(each).sample_sha256() for each in (rows, first, last)}
    assert len(digests) == 3
    assert len(tfdp.from_arrays(np.zeros((0, 3))).sample_sha256()) == 64


def test_a_large_element_is_shortened_in_a_message() -> None:
    with pytest.raises(tfdp.BadInput) as refusal:
        tfdp.from_arrays(np.array([{"image": "x" * 10_000}, None], object))
    assert len(str(refusal.value)) < 300
