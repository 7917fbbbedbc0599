"""Batch normalization in one operation computes what Keras's many do."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfdp.step import batch_norm

IMAGES = np.random.default_rng(0).normal(3, 2, (5, 4, 3, 2)).astype(np.float32)


def trained(
    images: np.ndarray, is_fused: bool, dtype: str = "float32", **options: Any
) -> tuple[list[np.ndarray], list[str]]:
    """Outputs, gradients, and what the layer keeps after a call; and the operations used."""
    layer = keras.layers.BatchNormalization(momentum=0.7, epsilon=0.01, dtype=dtype, **options)
    layer.build(images.shape)
    for number, weight in enumerate(layer.trainable_weights):
        weight.assign(np.linspace(0.5, 2, weight.shape[0]) + number)

    @tf.function
    def step(x: tf.Tensor) -> Any:
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = layer(x, training=True)
            # Not its sum or its sum of squares, whose gradients by the images are almost nothing.
            loss = tf.reduce_sum(tf.sin(tf.cast(y, tf.float32)))
        sources = [x, *(weight.value for weight in layer.trainable_weights)]
        return y, tape.gradient(loss, sources)

    if is_fused:
        with batch_norm.fused():
            run = step.get_concrete_function(tf.TensorSpec(images.shape, images.dtype))
    else:
        run = step.get_concrete_function(tf.TensorSpec(images.shape, images.dtype))
    y, gradients = run(tf.constant(images))
    found = [y, *gradients, *layer.moving_mean.value[None], *layer.moving_variance.value[None]]
    arrays = [np.asarray(tf.cast(each, tf.float64)) for each in found if each is not None]
    return arrays, [operation.type for operation in run.graph.get_operations()]


@pytest.mark.parametrize(
    ("images", "options", "tolerance"),
    [
        (IMAGES, {}, 1e-4),
        (IMAGES, {"scale": False}, 1e-4),
        (IMAGES, {"center": False}, 1e-4),
        (IMAGES[:1, :1, :1], {}, 1e-4),  # a single value, without any variance
        (IMAGES, {"dtype": "mixed_bfloat16"}, 2e-2),
    ],
)
def test_the_same_as_keras(images: np.ndarray, options: dict[str, Any], tolerance: float) -> None:
    ours, operations = trained(images, is_fused=True, **options)
    kerass, kerass_operations = trained(images, is_fused=False, **options)
    assert "FusedBatchNormV3" in operations
    assert "FusedBatchNormV3" not in kerass_operations
    assert len(ours) == len(kerass)
    for one, other in zip(ours, kerass, strict=True):
        np.testing.assert_allclose(one, other, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(
    ("images", "options"),
    [
        (IMAGES.astype(np.float64), {"dtype": "float64"}),
        (IMAGES[0], {}),
        (IMAGES, {"axis": 1}),
        (IMAGES, {"renorm": True}),
        (IMAGES, {"trainable": False}),
    ],
)
def test_keras_does_what_the_operation_can_not(images: np.ndarray, options: dict[str, Any]) -> None:
    ours, operations = trained(images, is_fused=True, **options)
    kerass, _ = trained(images, is_fused=False, **options)
    assert "FusedBatchNormV3" not in operations
    for one, other in zip(ours, kerass, strict=True):
        np.testing.assert_array_equal(one, other)
