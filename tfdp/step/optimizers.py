"""A model's optimizers, and their periodic work (gradient accumulation, weight averages)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from tfdp.step import keras_private


def optimizers(model: keras.Model) -> list[keras.optimizers.Optimizer]:
    """Returns the optimizer that the model is compiled with, and others among its attributes.

    A user's ``train_step`` may use several: a generator's and a discriminator's, for example.
    """
    compiled = model.optimizer
    known = (compiled, getattr(compiled, "inner_optimizer", None))
    attributes = vars(model).values()
    own = [value for value in attributes if isinstance(value, keras.optimizers.Optimizer)]
    return [compiled] * bool(compiled) + [each for each in own if each not in known]


def with_periodic_work(optimizer: Any, update: Callable[[], tf.Tensor], replicas: int) -> tf.Tensor:
    """Runs an update and decides outside of the replicas whether periodic work is due.

    Keras decides by a branch in the graph within a replica, where replicas can't all-reduce.

    Args:
        optimizer: the model's.
        update: runs one update on all replicas.
        replicas: number of replicas; with one, Keras's own branch works.

    Returns:
        The result of ``update``.
    """
    update_every, overwrite_every = keras_private.periods(optimizer)
    if replicas == 1 or (update_every, overwrite_every) == (1, 0):
        return update()
    is_update_due, is_overwrite_due = keras_private.due(optimizer)

    def decided(is_update: bool, is_overwrite: bool) -> tf.Tensor:
        with keras_private.periods_decided(is_update, is_overwrite):
            return update()

    def with_overwrite(is_update: bool) -> tf.Tensor:
        if not overwrite_every:
            return decided(is_update, False)
        return tf.cond(
            is_overwrite_due, lambda: decided(is_update, True), lambda: decided(is_update, False)
        )

    if update_every == 1:
        return with_overwrite(True)
    return tf.cond(is_update_due, lambda: with_overwrite(True), lambda: with_overwrite(False))
