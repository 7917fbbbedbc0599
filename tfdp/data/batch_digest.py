"""Digests of the global batches that a worker reads, by which workers find out that theirs differ.

They are computed in the input pipeline, from a bounded number of elements of each array. A digest
has two parts: one of labels and weights, and one of everything. If the first is alike on all
workers, they have the same examples in the same order, and features that differ nevertheless have
been augmented with other random numbers: stateful random ops in a parallel ``map`` draw in any
order. That does no harm, because only one worker uses each row.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

_ELEMENTS = 4096  # of each array; larger arrays are sampled evenly
_WEIGHTS = np.random.default_rng(0).integers(1 << 62, size=_ELEMENTS, dtype=np.int64) * 2 + 1
_INTEGERS = {1: tf.uint8, 2: tf.int16, 4: tf.int32, 8: tf.int64}  # by size in bytes
_PART = 1 << 26  # values of each of the two parts, so that a float64 holds the digest
_COLUMNS = 64  # of labels, by which rows are compared


def with_digests(dataset: tf.data.Dataset) -> tf.data.Dataset:
    """Returns a dataset of pairs: each element, and a digest of all elements up to it."""
    return dataset.scan(np.int64(0), _add_digest)


@tf.autograph.experimental.do_not_convert
def _add_digest(before: tf.Tensor, element: Any) -> tuple[tf.Tensor, Any]:
    digest = batch_digest(element, before)
    return digest, (element, digest)


def batch_digest(batch: Any, before: Any = 0) -> tf.Tensor:
    """Returns a digest (int64 scalar below ``2 ** 52``) of a batch, and of what came before.

    Args:
        batch: ``x`` or ``(x[, y[, sample_weight]])`` of dense, ragged or sparse numbers or strings.
        before: digest of the batches before.
    """
    before = tf.cast(before, tf.int64)
    labels = batch[1:] if isinstance(batch, tuple) else ()
    of_labels = before // _PART
    if labels:  # labels that are all the same tell nothing about the order
        digest = tf.maximum(_digest(labels, of_labels), 1)
        of_labels = tf.where(_rows_vary(labels), digest, of_labels)
    return of_labels * _PART + _digest(batch, before % _PART)


def same_examples(digest: Any) -> Any:
    """Returns what has to be alike on all workers: the part of the labels, if there is one."""
    of_labels = digest // _PART
    if isinstance(digest, tf.Tensor):
        return tf.where(of_labels > 0, of_labels, digest)
    return of_labels or digest


def _digest(values: Any, before: tf.Tensor) -> tf.Tensor:
    digest = before
    for leaf in tf.nest.flatten(values, expand_composites=True):
        integers = _as_integers(_sample(tf.reshape(leaf, [-1])))
        weights = tf.constant(_WEIGHTS)[: tf.size(integers)]
        own = tf.reduce_sum(integers * weights) + tf.size(leaf, tf.int64)
        digest = _mixed(digest * 0x2545F4914F6CDD1D + own)  # integers overflow, which is intended
    return digest % _PART


def _rows_vary(labels: Any) -> tf.Tensor:
    """Returns whether the rows of any of the arrays differ, as far as some columns show."""
    varies = tf.constant(False)
    for leaf in tf.nest.flatten(labels, expand_composites=True):
        count = tf.shape(leaf)[0]
        rows = tf.reshape(leaf, [count, tf.size(leaf) // tf.maximum(count, 1)])[:, :_COLUMNS]
        varies |= tf.reduce_any(tf.not_equal(rows, rows[:1]))
    return varies


def _mixed(value: tf.Tensor) -> tf.Tensor:
    """Returns an integer whose low bits depend on all bits of ``value``."""
    return tf.bitwise.bitwise_xor(value, tf.bitwise.right_shift(value, tf.constant(29, tf.int64)))


def _sample(flat: tf.Tensor) -> tf.Tensor:
    size = tf.size(flat, tf.int64)
    places = tf.range(tf.minimum(size, _ELEMENTS))
    return tf.gather(flat, places * size // tf.cast(tf.maximum(tf.size(places), 1), tf.int64))


def _as_integers(flat: tf.Tensor) -> tf.Tensor:
    """Returns int64 numbers that have the bits of ``flat``, or hashes of strings."""
    if flat.dtype == tf.string:
        return tf.strings.to_hash_bucket_fast(flat, (1 << 62) - 1)
    if flat.dtype == tf.bool:
        return tf.cast(flat, tf.int64)
    if flat.dtype.is_complex:
        flat = tf.reshape(tf.stack([tf.math.real(flat), tf.math.imag(flat)]), [-1])
    if flat.dtype.is_floating:
        flat = tf.bitcast(flat, _INTEGERS[flat.dtype.size])
    return tf.cast(flat, tf.int64)
