"""A model's optimizers, and their periodic work (gradient accumulation, weight averages)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import keras
import tensorflow as tf

from tfdp.step import keras_private

LEARNING_RATE = "learning_rate"  # name of the only hyperparameter that Keras keeps in a variable
_MAY_CONTAIN = (keras.optimizers.Optimizer, keras.layers.Layer, list, tuple, dict)  # optimizers


def optimizers(model: keras.Model) -> list[keras.optimizers.Optimizer]:
    """Returns the optimizer that the model is compiled with, and all others in it.

    A user's ``train_step`` may use several: a generator's and a discriminator's, for example. They
    are attributes of the model, of a part of it or of another optimizer, also in lists, tuples and
    dicts. Those that parts are compiled with count only if the model has a ``train_step`` of its
    own: Keras's does not use them. An optimizer whose variables another one has as its own, as a
    LossScaleOptimizer has those of the one in it, is not listed again.
    """
    is_of_keras = type(model).train_step is keras.Model.train_step
    queue: list[Any] = [model]
    seen = {id(model)}
    compiled = getattr(model, "optimizer", None)
    found = [compiled] if compiled else []
    for each in queue:  # it grows
        values = each if isinstance(each, (list, tuple)) else _contents(each)
        for value in values:
            if not isinstance(value, _MAY_CONTAIN) or id(value) in seen:
                continue
            seen.add(id(value))
            if is_of_keras and isinstance(value, keras.Model):
                seen.add(id(getattr(value, "optimizer", None)))
            queue.append(value)
            if isinstance(value, keras.optimizers.Optimizer):
                found.append(value)
    listed, variables = [], set[int]()
    for optimizer in found:
        own = {id(variable) for variable in optimizer.variables}
        if not own <= variables:
            listed.append(optimizer)
            variables |= own
    return listed


def _contents(container: Any) -> list[Any]:
    return list((container if isinstance(container, Mapping) else vars(container)).values())


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
