"""Gradients of tapes with respect to variables."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

import keras
import tensorflow as tf

from tfdp.step.keras_private import replaced

Gradients = list[Any]  # tensors, IndexedSlices or None


@contextlib.contextmanager
def adapted(adapt: Callable[[Callable[[Any], Gradients]], Gradients]) -> Iterator[None]:
    """Inside the block, a tape's gradients with respect to variables are those of ``adapt``.

    Gradients with respect to anything else, as for a gradient penalty, are as always, and so are
    those within ``jacobian``, ``vectorized_map`` and ``map_fn``, which compute rows of something.

    Args:
        adapt: a function of a function, which returns the gradients of the target times a weight
            (a scalar, or None for 1). It is better to weight the target than its gradients: what
            replicas exchange on the way back is then weighted too.
    """
    gradient = tf.GradientTape.gradient
    inside = threading.local()

    def of_rows(function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*args: Any, **options: Any) -> Any:
            inside.rows = getattr(inside, "rows", 0) + 1
            try:
                return function(*args, **options)
            finally:
                inside.rows -= 1

        return wrapper

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
        is_of_rows = getattr(inside, "rows", 0) > 0  # as they are, for each row of something
        if (
            leaves
            and not is_of_rows
            and all(isinstance(each, (keras.Variable, tf.Variable)) for each in leaves)
        ):
            return tf.nest.pack_sequence_as(sources, adapt(compute))
        return gradient(self, target, sources, output_gradients, *args, **options)

    with contextlib.ExitStack() as stack:
        stack.enter_context(replaced(tf.GradientTape, "gradient", adapting))
        for owner, name in (
            (tf.GradientTape, "jacobian"),
            (tf.GradientTape, "batch_jacobian"),
            (tf, "vectorized_map"),
            (tf, "map_fn"),
        ):
            stack.enter_context(replaced(owner, name, of_rows(getattr(owner, name))))
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
