"""Gradients of tapes with respect to variables."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import keras
import tensorflow as tf

from tfdp.step.keras_private import replaced

Gradients = list[Any]  # tensors, IndexedSlices or None


@contextlib.contextmanager
def adapted(adapt: Callable[[Callable[[Any], Gradients]], Gradients]) -> Iterator[None]:
    """Inside the block, a tape's gradients with respect to variables are those of ``adapt``.

    Gradients with respect to anything else, as for a gradient penalty, are as always.

    Args:
        adapt: a function of a function, which returns the gradients of the target times a weight
            (a scalar, or None for 1). It is better to weight the target than its gradients: what
            replicas exchange on the way back is then weighted too.
    """
    gradient = tf.GradientTape.gradient

    def adapting(
        self: Any,
        target: Any,
        sources: Any,
        output_gradients: Any = None,
        *args: Any,
        **options: Any,
    ) -> Any:
        def compute(weight: Any) -> Gradients:
            weighted = _weighted(target, output_gradients, weight)
            return list(
                tf.nest.flatten(gradient(self, target, sources, weighted, *args, **options))
            )

        leaves = tf.nest.flatten(sources)
        if leaves and all(isinstance(each, (keras.Variable, tf.Variable)) for each in leaves):
            return tf.nest.pack_sequence_as(sources, adapt(compute))
        return gradient(self, target, sources, output_gradients, *args, **options)

    with replaced(tf.GradientTape, "gradient", adapting):
        yield


def _weighted(target: Any, output_gradients: Any, weight: Any) -> Any:
    if weight is None:
        return output_gradients
    targets = tf.nest.flatten(target)
    given = [None] * len(targets) if output_gradients is None else tf.nest.flatten(output_gradients)
    upstream = [
        (tf.ones_like(each) if own is None else own) * tf.cast(weight, each.dtype)
        for each, own in zip(targets, given, strict=True)
    ]
    return tf.nest.pack_sequence_as(target, upstream)
