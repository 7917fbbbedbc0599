from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from tfdp.data.batch_digest import batch_digest, same_examples, with_digests

ROWS = np.random.default_rng(1).normal(size=(50, 4))
DTYPES = ["float64", "float32", "float16", "int64", "int32", "uint8", "bool", "complex64", "U8"]


def digest(batch: Any, before: int = 0) -> int:
    return int(batch_digest(batch, before))


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_digest_depends_on_values_and_their_order(dtype: str) -> None:
    rows = (ROWS * 50 > 0 if dtype == "bool" else (ROWS * 50).round()).astype(dtype)
    assert 0 <= digest(rows) < 1 << 52
    assert digest(rows) == digest(tf.constant(rows))
    changed = rows.copy()
    changed[49, 3] = changed.flat[0] if changed[49, 3] != changed.flat[0] else rows.flat[1]
    others = [digest(rows[::-1]), digest(rows[:49]), digest(rows, before=1)]
    if dtype != "bool":
        others.append(digest(changed))
    assert len({digest(rows), *others}) == len(others) + 1


def test_it_depends_on_every_array_and_on_rows_of_ragged_and_sparse_ones() -> None:
    ragged, other = tf.ragged.constant([[1], [2, 3]]), tf.ragged.constant([[1, 2], [3]])
    assert digest(ragged) != digest(other)
    assert digest(tf.sparse.from_dense([[1, 0]])) != digest(tf.sparse.from_dense([[0, 1]]))
    assert digest((ROWS, ROWS[:, 0])) != digest((ROWS, ROWS[:, 1]))
    assert digest((ROWS[:, 0], ROWS[:, 1])) != digest((ROWS[:, 1], ROWS[:, 0]))


def test_labels_tell_whether_examples_are_the_same() -> None:
    labels = np.arange(50) % 3
    augmented, one_hot = ROWS + 1e-3, np.eye(3)[labels]
    for others in ((labels,), (one_hot,), (labels, labels / 2), ({"a": labels},)):
        one, other = digest((ROWS, *others)), digest((augmented, *others))
        assert one != other
        assert same_examples(one) == same_examples(other) != 0
        assert int(same_examples(tf.constant(one))) == same_examples(one)
    moved = digest((ROWS[::-1], labels[::-1]))
    assert same_examples(moved) != same_examples(digest((ROWS, labels)))


@pytest.mark.parametrize(
    "labels", [(), (np.zeros(50),), (np.eye(3)[[1] * 50],), (np.ones(50),) * 2]
)
def test_without_labels_that_vary_the_features_tell(labels: Any) -> None:
    one, other = digest((ROWS, *labels)), digest((ROWS[::-1], *labels))
    assert same_examples(one) != same_examples(other)


def test_a_batch_whose_labels_are_all_the_same_keeps_the_digest_of_the_labels_before() -> None:
    first = digest((ROWS, np.arange(50)))
    second = digest((ROWS[:1], np.arange(1)), before=first)
    assert same_examples(first) == same_examples(second)
    assert first != second


def test_large_arrays_are_sampled_evenly() -> None:
    large = np.zeros((1000, 100), np.float32)
    ones = [large.copy(), large.copy()]
    ones[0][:500] = 1
    ones[1][500:] = 1
    assert len({digest(large), *map(digest, ones)}) == 3


def test_a_datasets_digest_is_of_all_elements_so_far() -> None:
    def digests(rows: list[int]) -> list[int]:
        dataset = with_digests(tf.data.Dataset.from_tensor_slices(np.array(rows)[:, np.newaxis]))
        return [int(each) for _, each in dataset]

    assert digests([1, 2, 3])[:2] == digests([1, 2, 4])[:2]
    assert digests([1, 2, 3])[2] != digests([2, 1, 3])[2]
    assert len(set(digests([1, 1, 1]))) == 3
    with_empty = tf.data.Dataset.from_tensors((np.zeros([0, 3]), np.array([], str)))
    assert len(list(with_digests(with_empty))) == 1
