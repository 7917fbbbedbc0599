"""The one place that touches what Keras keeps to itself. Checked with Keras 3.15.

Keras 3 has no public way to (1) create a compiled model's metric and optimizer variables without
training, (2) hand an optimizer gradients that are reduced already, or (3) say what random layers
draw from. Each function below says what it leans on; ``tests/tfdp/test_keras_private.py`` fails
when a version of Keras moves it.
"""

from __future__ import annotations

import contextlib
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import keras
import tensorflow as tf
from keras.src.backend.tensorflow.optimizer import TFOptimizer
from keras.src.optimizers.base_optimizer import BaseOptimizer

Gradients = list[Any]  # tensors, IndexedSlices or None


def build(model: keras.Model, batch_spec: Any) -> None:
    """Creates all variables of a compiled model, its metrics and its optimizer.

    Leans on ``Trainer._symbolic_build(data_batch=…)``: ``fit`` calls it by way of a function that
    fails under MultiWorkerMirroredStrategy, which this skips.

    Args:
        model: a compiled model of this strategy's scope.
        batch_spec: ``(x[, y[, sample_weight]])`` of ``tf.TensorSpec``, batch dimension first.
    """
    with model.distribute_strategy.scope():
        model._symbolic_build(data_batch=batch_spec)


def compilation(model: keras.Model) -> Any:
    """An object that ``compile`` makes anew each time; None before.

    Leans on ``Trainer._compile_loss``; a model may override ``metrics``, the public place to look.
    """
    return model._compile_loss


@contextlib.contextmanager
def reduced_first(reduce: Callable[[Gradients], Gradients]) -> Iterator[None]:
    """While it lasts, ``reduce`` sees an optimizer's gradients before the optimizer does.

    Keras clips, checks and unscales a replica's own gradients and only then sums them over the
    replicas, which is another computation than on one replica. Here whatever ``apply`` does
    happens to gradients that are reduced already, and Keras's own reduction does nothing.

    Leans on ``apply`` of ``BaseOptimizer`` and ``LossScaleOptimizer`` being the outermost call that
    sees the gradients, on ``LossScaleOptimizer._stateful_handle_finite_grads`` calling the wrapped
    optimizer's, and on ``TFOptimizer._all_reduce_sum_gradients`` being the only reduction.
    """
    inside = threading.local()  # MirroredStrategy traces each replica in a thread of its own

    def reducing(apply: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(self: Any, grads: Any, trainable_variables: Any = None) -> Any:
            if getattr(inside, "apply", False):  # an optimizer that wraps another
                return apply(self, grads, trainable_variables)
            return as_inside(apply)(self, reduce(list(grads)), trainable_variables)

        return wrapper

    def as_inside(apply: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*args: Any) -> Any:
            inside.apply = True
            try:
                return apply(*args)
            finally:
                inside.apply = False

        return wrapper

    scaled = keras.optimizers.LossScaleOptimizer
    finish = "_stateful_handle_finite_grads"  # in a new thread on several replicas
    with contextlib.ExitStack() as stack:
        for optimizer in (BaseOptimizer, scaled):
            stack.enter_context(_replaced(optimizer, "apply", reducing(optimizer.apply)))
        stack.enter_context(_replaced(scaled, finish, as_inside(getattr(scaled, finish))))
        stack.enter_context(
            _replaced(TFOptimizer, "_all_reduce_sum_gradients", lambda _, pairs: list(pairs))
        )
        yield


@contextlib.contextmanager
def seeds_drawn_from(step: tf.Tensor) -> Iterator[None]:
    """While it lasts, random layers draw from (their own seed, ``step``, replica).

    Keras counts draws in a variable, which every replica advances alike, so that all replicas drop
    the same units, and which a checkpoint would have to carry. A function of the step has neither
    fault.

    Leans on ``SeedGenerator.next`` being what every random layer calls, and on the first word of
    its ``state`` being the seed, which drawing in order leaves alone.

    Args:
        step: int64 scalar, updates done before this one.
    """
    draws: Counter[tuple[int, int]] = Counter()

    def next_seed(self: keras.random.SeedGenerator, ordered: bool = True) -> tf.Tensor:
        draw = (threading.get_ident(), id(self))  # MirroredStrategy has a thread for each replica
        replica = tf.distribute.get_replica_context().replica_id_in_sync_group
        seed = tf.stack([tf.cast(self.state.value[0], tf.int32), draws[draw]])
        for number in (tf.cast(step, tf.int32), tf.cast(replica, tf.int32)):
            seed = tf.random.experimental.stateless_fold_in(seed, number)
        draws[draw] += 1
        return tf.cast(seed, self.state.dtype)

    with _replaced(keras.random.SeedGenerator, "next", next_seed):
        yield


@contextlib.contextmanager
def _replaced(owner: type, name: str, value: Any) -> Iterator[None]:
    original = owner.__dict__[name]  # a KeyError here: Keras has moved it
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, original)
