"""What one replica gets of a global batch: a range of its rows, and how many examples there are."""

from __future__ import annotations

from typing import Any, NamedTuple

import tensorflow as tf


class ReplicaBatch(NamedTuple):
    """A replica's rows of a global batch.

    Args:
        data: the rows as ``train_step`` gets them: ``x``, or ``(x[, y[, sample_weight]])``. A
            replica without examples gets one row of the global batch, which counts nothing:
            layers, tables and means need something to compute on.
        examples: int32 scalar, the number of examples that count: the rows, or 0.
        total_examples: int32 scalar, the number of examples in the global batch.
        digest: int64 scalar, digest of all global batches that this worker has read, this one
            included; 0 where workers read different data on purpose, or the order is computed.
    """

    data: Any
    examples: tf.Tensor
    total_examples: tf.Tensor
    digest: tf.Tensor


def bounds(size: Any, share: Any, shares: int) -> tuple[Any, Any]:
    """Returns the first and the last place (exclusive) of one of ``shares`` ranges of ``size``."""
    return size * share // shares, size * (share + 1) // shares


def count_rows(data: Any) -> tf.Tensor:
    """Returns the number of rows of a batch, an int32 scalar."""
    leaf = tf.nest.flatten(data)[0]
    if isinstance(leaf, tf.RaggedTensor):
        return tf.cast(leaf.nrows(), tf.int32)
    if isinstance(leaf, tf.SparseTensor):
        return tf.cast(leaf.dense_shape[0], tf.int32)
    return tf.shape(leaf)[0]


def take_rows(data: Any, start: Any, stop: Any) -> Any:
    """Returns rows ``start`` to ``stop`` (exclusive) of every leaf: dense, ragged or sparse."""

    def take(leaf: Any) -> Any:
        if not isinstance(leaf, tf.SparseTensor):
            return leaf[start:stop]
        first, count = tf.cast(start, tf.int64), tf.cast(stop - start, tf.int64)
        sizes = tf.concat([[count], leaf.dense_shape[1:]], axis=0)
        rows = tf.sparse.slice(leaf, tf.one_hot(0, tf.size(sizes), first, 0, dtype=tf.int64), sizes)
        rows.set_shape([None, *leaf.shape[1:]])
        return rows

    return tf.nest.map_structure(take, data)


def of_replica(data: Any, replica: Any, replicas: int, digest: Any = 0) -> ReplicaBatch:
    """Returns the part of a global batch that belongs to one of ``replicas``."""
    size = count_rows(data)
    start, stop = bounds(size, tf.cast(replica, tf.int32), replicas)
    rows = data if replicas == 1 else take_rows(data, start, tf.maximum(stop, start + 1))
    whole = tf.nest.flatten(data)[0].shape[0]
    if whole is not None and whole % replicas == 0:  # TensorFlow may go on knowing the size
        for leaf in tf.nest.flatten(rows):
            leaf.set_shape([whole // replicas, *leaf.shape[1:]])
    return ReplicaBatch(rows, stop - start, size, tf.cast(digest, tf.int64))


def micro_batches(batch: ReplicaBatch, count: int) -> list[ReplicaBatch]:
    """Splits a replica's batch into ``count`` pieces whose sizes differ by at most one.

    A piece without examples has one row, as a replica without examples has.
    """
    if count == 1:
        return [batch]
    pieces = []
    for i in range(count):
        start, stop = bounds(batch.examples, i, count)
        rows = take_rows(batch.data, start, tf.maximum(stop, start + 1))
        pieces.append(batch._replace(data=rows, examples=stop - start))
    return pieces
