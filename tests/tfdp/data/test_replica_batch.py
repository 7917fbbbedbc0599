from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from tfdp.data.replica_batch import ReplicaBatch, micro_batches, of_replica, take_rows


def batch_of(rows: int) -> Any:
    """Dense, ragged and sparse rows, and strings; each row tells its number."""
    numbers = np.arange(1, rows + 1)
    return {
        "dense": tf.constant(numbers[:, np.newaxis] * [1.0, 2.0]),
        "ragged": tf.RaggedTensor.from_row_lengths(np.repeat(numbers, numbers % 3), numbers % 3),
        "sparse": tf.sparse.from_dense(np.diag(numbers)),
        "text": tf.constant([str(number) for number in numbers]),
    }


def as_lists(batch: Any, rows: int | None = None) -> Any:
    """Each leaf as a list of its first rows."""

    def as_list(leaf: Any) -> list[Any]:
        if isinstance(leaf, tf.SparseTensor):
            leaf = tf.sparse.to_dense(leaf)
        return (leaf.to_list() if isinstance(leaf, tf.RaggedTensor) else leaf.numpy().tolist())[
            :rows
        ]

    return {name: as_list(leaf) for name, leaf in batch.items()}


@pytest.mark.parametrize("rows", [1, 2, 3, 7])
@pytest.mark.parametrize("replicas", [1, 3])
def test_the_replicas_rows_are_the_global_batch(rows: int, replicas: int) -> None:
    whole = batch_of(rows)
    shares = [of_replica(whole, replica, replicas) for replica in range(replicas)]
    joined: dict[str, list[Any]] = {name: [] for name in whole}
    for share in shares:
        assert int(share.total_examples) == rows
        assert len(share.data["text"]) == max(1, int(share.examples))
        for name, values in as_lists(share.data, int(share.examples)).items():
            joined[name] += values
        assert share.data["text"].numpy()[0] in whole["text"].numpy(), "a real row"
    assert joined == as_lists(whole)
    sizes = [int(share.examples) for share in shares]
    assert max(sizes) - min(sizes) <= 1


def test_shapes_stay_known_in_a_dataset() -> None:
    dataset = tf.data.Dataset.from_tensor_slices(batch_of(12)).batch(4, drop_remainder=True)
    spec = dataset.map(lambda batch: of_replica(batch, 1, 2)).element_spec.data
    assert spec["dense"].shape == [2, 2]
    assert spec["sparse"].shape.as_list() == [None, 12]
    assert isinstance(spec["sparse"], tf.SparseTensorSpec)
    assert isinstance(spec["ragged"], tf.RaggedTensorSpec)
    replicas = tf.data.Dataset.range(3)
    uneven = tf.data.Dataset.zip(dataset, replicas).map(lambda batch, i: of_replica(batch, i, 3))
    assert uneven.element_spec.data["dense"].shape.as_list() == [None, 2]


def test_a_few_rows_may_be_all() -> None:
    assert as_lists(take_rows(batch_of(3), 0, 5)) == as_lists(batch_of(3))
    assert as_lists(take_rows(batch_of(3), 0, 2)) == as_lists(batch_of(3), 2)


@pytest.mark.parametrize("examples", [0, 1, 2, 5])
def test_micro_batches_have_a_row_each(examples: int) -> None:
    data = batch_of(max(1, examples))
    whole = ReplicaBatch(data, tf.constant(examples), tf.constant(9), tf.constant(0, tf.int64))
    pieces = micro_batches(whole, 3)
    assert sum(int(piece.examples) for piece in pieces) == examples
    texts = [piece.data["text"].numpy() for piece in pieces]
    assert all(len(text) == max(1, int(p.examples)) for text, p in zip(texts, pieces, strict=True))
    counted = [
        text[: int(piece.examples)].tolist() for text, piece in zip(texts, pieces, strict=True)
    ]
    assert list(itertools.chain(*counted)) == data["text"].numpy().tolist()[:examples]
    assert micro_batches(whole, 1) == [whole]
