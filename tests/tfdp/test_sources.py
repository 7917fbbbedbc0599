from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfdp
from tfdp.sources import Source, as_data

ROWS = np.arange(12.0).reshape(6, 2)
CLASSES = np.arange(6)


def read(source: Source, *indices: int) -> Any:
    return tf.nest.map_structure(np.array, source.read(tf.constant(indices, tf.int64)))


def test_a_source_knows_its_length_and_reads_any_example() -> None:
    source = tfdp.from_arrays(ROWS, CLASSES, sample_weight=CLASSES / 2)
    assert len(source) == 6
    features, labels, weights = read(source, 4, 0, 4)
    np.testing.assert_array_equal(features, ROWS[[4, 0, 4]])
    assert labels.tolist() == [4, 0, 4]
    assert weights.tolist() == [2, 0, 2]
    assert read(source)[0].shape == (0, 2)


@pytest.mark.parametrize("parts", [1, 2, 3])
def test_a_batch_has_the_parts_that_were_given(parts: int) -> None:
    source = tfdp.from_arrays(*(ROWS, CLASSES, CLASSES)[:parts])
    assert len(read(source, 1)) == len(source.element_spec()) == parts


@pytest.mark.parametrize(
    ("given", "becomes"),
    [
        ("float64", "float32"),
        ("float16", "float32"),
        ("float32", "float32"),
        ("uint8", "uint8"),
        ("int64", "int64"),
        ("bool", "bool"),
    ],
)
def test_floats_become_what_keras_computes_in(given: str, becomes: str) -> None:
    features, labels = tfdp.from_arrays(ROWS.astype(given), ROWS.astype(given)).element_spec()
    assert features == labels == tf.TensorSpec([2], becomes)


def test_floats_follow_the_floatx_of_keras(float64: None) -> None:
    assert keras.config.floatx() == "float64"
    assert tfdp.from_arrays(ROWS.astype("float32")).element_spec()[0].dtype == tf.float64


def test_structures_and_strings_stay_what_they_are() -> None:
    features = {"row": ROWS, "text": np.array(["a", "bc", "d", "", "é", "f"])}
    source = tfdp.from_arrays(features, (CLASSES, ROWS))
    spec = source.element_spec()
    assert spec[0]["text"] == tf.TensorSpec([], tf.string)
    features, (numbers, rows) = read(source, 4, 1)
    assert [text.decode() for text in features["text"]] == ["é", "bc"]
    np.testing.assert_array_equal(features["row"], rows)
    assert numbers.tolist() == [4, 1]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((ROWS, CLASSES[:5]), r"shapes \[\(6, 2\), \(5,\)\]"),
        (({"a": ROWS, "b": ROWS[:1]},), "the first dimension"),
        ((np.float32(3),), r"shapes \[\(\)\]"),
        ((ROWS, None, CLASSES), "sample weights but no labels"),
        ((np.array([{}, []], object),), r"dtype object .*\{\}"),
    ],
)
def test_wrong_arrays_are_refused(arguments: Any, said: str) -> None:
    with pytest.raises(tfdp.BadInput, match=said):
        tfdp.from_arrays(*arguments)


class Squares(Source):
    """A source of a user's own."""

    def __len__(self) -> int:
        return 5

    def read(self, indices: tf.Tensor) -> Any:
        return ({"n": indices}, tf.square(indices))


def test_a_source_of_ones_own_needs_two_methods() -> None:
    assert Squares().element_spec() == (
        {"n": tf.TensorSpec([], tf.int64)},
        tf.TensorSpec([], tf.int64),
    )
    with pytest.raises(TypeError, match="abstract"):
        Source()  # type: ignore[abstract]


def test_data_is_taken_as_it_comes() -> None:
    source, dataset = Squares(), tf.data.Dataset.range(3)
    assert as_data(source) is source
    assert as_data(dataset) is dataset
    assert len(as_data(ROWS, CLASSES)) == 6


@pytest.mark.parametrize("extra", [{"y": CLASSES}, {"sample_weight": CLASSES}])
@pytest.mark.parametrize("data", [Squares(), tf.data.Dataset.range(3)])
def test_labels_beside_data_that_has_its_own_are_refused(data: Any, extra: Any) -> None:
    with pytest.raises(tfdp.BadInput, match="labels or weights were given beside"):
        as_data(data, **extra)


def test_a_distributed_dataset_is_refused(strategies: Any) -> None:
    distributed = strategies(2).experimental_distribute_dataset(tf.data.Dataset.range(8).batch(2))
    with pytest.raises(tfdp.BadInput, match="distributed already"):
        as_data(distributed)
