"""A replica's share of a global batch, and the arithmetic that makes shares add up to the whole.

A loss that averages has to average over the *global* batch. So a replica's mean is weighted by the
replica's fraction of the examples, and denominators that depend on the data (valid positions,
weights) are summed over all replicas. Gradients then only need to be summed, however unevenly the
batch is split.
"""

from __future__ import annotations

import contextlib
import dataclasses
import threading
from collections.abc import Iterator
from typing import Any, Literal

import tensorflow as tf

from tfdp.data.replica_batch import ReplicaBatch, count_rows
from tfdp.step.all_reduce import all_reduce_sum

# How the values of shares make the value of the whole batch: as their mean, weighted by examples;
# as their sum; or as that mean times the number of replicas, by which the user has divided already.
Combination = Literal["mean", "sum", "divided"]

_current = threading.local()


@dataclasses.dataclass(frozen=True)
class Share:
    """A replica's share of a global batch, or a micro-batch of it.

    Args:
        examples: int32 scalar, the number of examples in this share.
        total_examples: int32 scalar, the number of examples in all shares together.
        replicas: number of replicas that share the global batch.
        may_be_empty: whether some shares have no example. An empty share is computed on one row,
            which counts nothing.
        is_micro_batch: whether a replica has several shares, one after the other.
    """

    examples: tf.Tensor
    total_examples: tf.Tensor
    replicas: int
    may_be_empty: bool
    is_micro_batch: bool = False

    def contribution(self, value: Any, combination: Combination = "mean") -> Any:
        """Returns this share's summand of the whole batch's value.

        Args:
            value: a float tensor or IndexedSlices, computed on this share.
            combination: how values of shares make the value of the whole batch.
        """
        if combination == "sum":
            return self.zero_if_empty(value)
        times = self.replicas if combination == "divided" else 1
        return _scale(value, times * self.examples, self.total_examples)

    def as_mean(self, value: Any, combination: Combination) -> Any:
        """Returns the value of which ``contribution`` as a mean is that of ``value``."""
        if combination == "sum":
            return _scale(value, self.total_examples, self.examples)
        return value * tf.cast(self.replicas, value.dtype) if combination == "divided" else value

    def times_examples(self, value: Any) -> tf.Tensor:
        """Returns ``value * examples``; unlike a ratio, that keeps whole numbers exact."""
        precise = tf.float64 if value.dtype == tf.float64 else tf.float32
        return tf.cast(value, precise) * tf.cast(self.examples, precise)

    def over_total(self, value: tf.Tensor, dtype: tf.DType) -> tf.Tensor:
        """Returns the mean over examples of the all-reduced sum of ``times_examples``."""
        return tf.cast(value / tf.cast(self.total_examples, value.dtype), dtype)

    def zero_if_empty(self, values: Any) -> Any:
        """Returns ``values``, or zeros of their shape for an empty share."""
        if not self.may_be_empty:
            return values
        return _scale(values, tf.cast(self.examples > 0, tf.int32), tf.constant(1))


def share_of(batch: ReplicaBatch, smallest_batch: int = 0, accumulate_steps: int = 1) -> Share:
    """Returns this replica's share of a global batch; call it in replica context.

    Args:
        batch: the replica's batch.
        smallest_batch: a global batch has at least so many examples; 0 if that is unknown.
        accumulate_steps: number of micro-batches that the replica splits its examples into.
    """
    replicas = tf.distribute.get_replica_context().num_replicas_in_sync
    shares = replicas * accumulate_steps
    may_be_empty = shares > max(1, smallest_batch)
    return Share(batch.examples, batch.total_examples, replicas, may_be_empty, accumulate_steps > 1)


@contextlib.contextmanager
def computed(share: Share) -> Iterator[None]:
    """Inside the block, ``current`` returns ``share`` in this thread."""
    before, _current.share = current(), share
    try:
        yield
    finally:
        _current.share = before


def current() -> Share | None:
    """Returns the share that this thread computes, or None outside of a step on shares."""
    return getattr(_current, "share", None)


def as_replica_batch(batch: Any, needs_total: bool = True) -> ReplicaBatch:
    """Returns a replica's batch; call it in replica context.

    Args:
        batch: an element of ``Batches.dataset``: a ReplicaBatch already, or bare data of a dataset
            that TensorFlow shards. Then replicas all-reduce their sizes, unless TensorFlow has
            split the batch evenly; and a replica without data gets a row of zeros.
        needs_total: false leaves the all-reduce out; ``total_examples`` is not valid then.
    """
    if isinstance(batch, ReplicaBatch):
        return batch
    examples, no_digest = count_rows(batch), tf.constant(0, tf.int64)
    size = tf.nest.flatten(batch)[0].shape[0]
    if size is not None:
        replicas = tf.distribute.get_replica_context().num_replicas_in_sync
        return ReplicaBatch(batch, examples, examples * replicas, no_digest)
    total = tf.cast(examples, tf.float32)  # GPUs add floats fastest
    if needs_total:
        total = all_reduce_sum(total)
    missing = tf.cast(tf.equal(examples, 0), tf.int32)

    def pad(leaf: Any) -> Any:
        if not isinstance(leaf, tf.Tensor):
            return leaf
        # Not tf.pad: oneDNN merges it into a convolution that then ignores this dimension.
        shape = tf.concat([[missing], tf.shape(leaf)[1:]], axis=0)
        zeros = tf.fill(shape, "") if leaf.dtype == tf.string else tf.zeros(shape, leaf.dtype)
        return tf.concat([leaf, zeros], axis=0)

    padded = tf.nest.map_structure(pad, batch)
    return ReplicaBatch(padded, examples, tf.cast(total, tf.int32), no_digest)


def add_gradients(first: Any, second: Any) -> Any:
    """Returns the sum of two gradients, each a tensor or IndexedSlices."""
    if isinstance(first, tf.IndexedSlices) and isinstance(second, tf.IndexedSlices):
        return tf.IndexedSlices(
            tf.concat([first.values, second.values], axis=0),
            tf.concat([first.indices, second.indices], axis=0),
            first.dense_shape,
        )
    return tf.convert_to_tensor(first) + tf.convert_to_tensor(second)


def _scale(values: Any, numerator: tf.Tensor, denominator: tf.Tensor) -> Any:
    """Multiplies by ``numerator / denominator``; 0 * NaN and x / 0 are 0 here."""
    if isinstance(values, tf.IndexedSlices):
        rows = _scale(values.values, numerator, denominator)
        return tf.IndexedSlices(rows, values.indices, values.dense_shape)
    precise = tf.float64 if values.dtype == tf.float64 else tf.float32
    ratio = tf.math.divide_no_nan(tf.cast(numerator, precise), tf.cast(denominator, precise))
    return tf.math.multiply_no_nan(values, tf.cast(ratio, values.dtype))
