"""A replica's part of a global batch, and what makes parts add up to the whole.

Whatever a loss averages is averaged over the *global* batch: a replica's mean counts by its part of
the examples, and denominators that depend on the data (valid positions, weights) are summed over
all replicas. So gradients need only be summed, however unevenly the batch is split.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import tensorflow as tf


@dataclasses.dataclass(frozen=True)
class Part:
    """A replica's part of a global batch, or a piece of it where gradients are accumulated.

    Args:
        examples: int32 scalar, how many examples it has.
        total: int32 scalar, how many all parts have together.
        parts: how many there are: replicas times accumulation steps.
        may_be_empty: whether there are parts without any example; they are computed on one example
            of zeros, which counts nothing.
    """

    examples: tf.Tensor
    total: tf.Tensor
    parts: int
    may_be_empty: bool

    def of_mean(self, mean: Any) -> Any:
        """What a mean over this part adds to the mean over the global batch."""
        return _times(mean, self.examples, self.total)

    def to_mean(self, added: Any) -> Any:
        """The mean that ``of_mean`` was given; 0 where there is no example."""
        return _times(added, self.total, self.examples)

    def times_examples(self, value: Any) -> tf.Tensor:
        """A value times the number of examples: whole numbers stay exact, as a ratio's don't."""
        precise = tf.float64 if value.dtype == tf.float64 else tf.float32
        return tf.cast(value, precise) * tf.cast(self.examples, precise)

    def over_total(self, value: tf.Tensor, dtype: tf.DType) -> tf.Tensor:
        """A sum of what ``times_examples`` gave on all replicas, as the mean over examples."""
        return tf.cast(value / tf.cast(self.total, value.dtype), dtype)

    def counted(self, values: Any) -> Any:
        """The values, or zeros where there is no example."""
        if not self.may_be_empty:
            return values
        return _times(values, tf.cast(self.examples > 0, tf.int32), tf.constant(1))

    def padded(self, batch: Any) -> Any:
        """The batch, or one example of zeros where there is none: an empty mean is no number."""
        if not self.may_be_empty:
            return batch
        missing = tf.cast(tf.equal(self.examples, 0), tf.int32)

        def pad(leaf: tf.Tensor) -> tf.Tensor:
            # Not by tf.pad, which oneDNN merges into a convolution that forgets this dimension.
            shape = tf.concat([[missing], tf.shape(leaf)[1:]], axis=0)
            zeros = tf.fill(shape, "") if leaf.dtype == tf.string else tf.zeros(shape, leaf.dtype)
            return tf.concat([leaf, zeros], axis=0)

        return tf.nest.map_structure(pad, batch)


def _times(values: Any, part: tf.Tensor, whole: tf.Tensor) -> Any:
    """Values (IndexedSlices, too) times ``part / whole``; 0 times a NaN is 0 here, as is n / 0."""
    if isinstance(values, tf.IndexedSlices):
        rows = _times(values.values, part, whole)
        return tf.IndexedSlices(rows, values.indices, values.dense_shape)
    precise = tf.float64 if values.dtype == tf.float64 else tf.float32
    ratio = tf.math.divide_no_nan(tf.cast(part, precise), tf.cast(whole, precise))
    return tf.math.multiply_no_nan(values, tf.cast(ratio, values.dtype))


def count_examples(batch: Any) -> tf.Tensor:
    """How many examples a batch has, as an int32 scalar."""
    return tf.shape(tf.nest.flatten(batch)[0])[0]


def pieces(batch: Any, count: int) -> list[Any]:
    """Splits a batch into ``count`` pieces, one after the other, that differ by one at the most."""
    if count == 1:
        return [batch]
    size = count_examples(batch)
    return [
        tf.nest.map_structure(
            lambda leaf, i=i: leaf[size * i // count : size * (i + 1) // count], batch
        )
        for i in range(count)
    ]


def added(values: Any, others: Any) -> Any:
    """The sum of two gradients: tensors, or IndexedSlices."""
    if isinstance(values, tf.IndexedSlices) and isinstance(others, tf.IndexedSlices):
        return tf.IndexedSlices(
            tf.concat([values.values, others.values], axis=0),
            tf.concat([values.indices, others.indices], axis=0),
            values.dense_shape,
        )
    return tf.convert_to_tensor(values) + tf.convert_to_tensor(others)
