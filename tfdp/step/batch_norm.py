"""Batch normalization of images as one operation of TensorFlow.

Keras 3 composes it from about twenty operations, gradients included, and each of them reads or
writes all images: half of the step of a small convolutional network.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import keras
import tensorflow as tf

from tfdp.step import keras_private


@contextlib.contextmanager
def fused() -> Iterator[None]:
    """Inside the block, Keras's layers normalize batches of images by ``FusedBatchNormV3``.

    The results differ from Keras's by rounding. Keras computes the cases that the operation can't:
    other shapes, float64, masks, ``synchronized``, ``renorm``, inference.
    """
    keras_call = keras.layers.BatchNormalization.call

    def call(
        self: keras.layers.BatchNormalization,
        inputs: tf.Tensor,
        training: bool | None = None,
        mask: Any = None,
    ) -> tf.Tensor:
        if training and self.trainable and mask is None and _fits(self, inputs):
            return _normalized(self, inputs)
        return keras_call(self, inputs, training=training, mask=mask)

    with keras_private.replaced(keras.layers.BatchNormalization, "call", call):
        yield


def _fits(layer: keras.layers.BatchNormalization, inputs: tf.Tensor) -> bool:
    return (
        inputs.shape.rank == 4
        and layer.axis in (-1, 3)  # on CPUs, it can't do channels first
        and inputs.dtype.is_floating
        and inputs.dtype != tf.float64
        and not layer.synchronized
        and not layer.renorm
    )


def _normalized(layer: keras.layers.BatchNormalization, inputs: tf.Tensor) -> tf.Tensor:
    """Returns the layer's outputs in training, and updates its moving averages."""
    images = tf.cast(inputs, tf.float32)  # as Keras does
    channels = images.shape[-1:]
    outputs, mean, variance, *_ = tf.raw_ops.FusedBatchNormV3(
        x=images,
        scale=tf.cast(layer.gamma, tf.float32) if layer.scale else tf.ones(channels),
        offset=tf.cast(layer.beta, tf.float32) if layer.center else tf.zeros(channels),
        mean=tf.zeros([0]),
        variance=tf.zeros([0]),
        epsilon=layer.epsilon,
        is_training=True,
    )
    # The operation divides the variance by n - 1; Keras's moving average takes it over n.
    values = tf.cast(tf.size(images, tf.int64) // channels[0], tf.float32)
    variance *= (values - 1) / values
    for average, value in ((layer.moving_mean, mean), (layer.moving_variance, variance)):
        before = tf.cast(average, tf.float32)
        average.assign(before * layer.momentum + value * (1 - layer.momentum))
    return tf.cast(outputs, layer.compute_dtype)
