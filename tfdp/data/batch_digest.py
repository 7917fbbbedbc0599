"""Digests of the global batches that a worker reads, by which workers find out that theirs differ.

They are computed in the input pipeline, from a bounded number of elements of each array.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

_ELEMENTS = 4096  # of each array; larger arrays are sampled evenly
_WEIGHTS = np.random.default_rng(0).integers(1 << 62, size=_ELEMENTS, dtype=np.int64) * 2 + 1
_INTEGERS = {1: tf.uint8, 2: tf.int16, 4: tf.int32, 8: tf.int64}  # by size in bytes
_BITS = 52  # of a digest, so that a float64 holds it


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
        batch: dense, ragged or sparse arrays of numbers or strings.
        before: digest of the batches before.
    """
    digest = tf.cast(before, tf.int64)
    for leaf in tf.nest.flatten(batch, expand_composites=True):
        integers = _as_integers(_sample(tf.reshape(leaf, [-1])))
        weights = tf.constant(_WEIGHTS)[: tf.size(integers)]
        own = tf.reduce_sum(integers * weights) + tf.size(leaf, tf.int64)
        digest = _mixed(digest * 0x2545F4914F6CDD1D + own)  # integers overflow, which is intended
    return tf.bitwise.bitwise_and(digest, (1 << _BITS) - 1)


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
