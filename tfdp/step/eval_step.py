"""Evaluation and prediction steps: Keras's ``test_step`` and ``predict_step`` on all replicas."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from tfdp.data.order import Order
from tfdp.step import keras_private, metrics
from tfdp.step.keras_private import TracedLosses
from tfdp.step.per_compile import function_of, once_per_compile
from tfdp.step.share import Share, count_examples, share_of


@once_per_compile
def test_steps(model: keras.Model) -> Callable[[Any, Order, int, int], None]:
    """Returns a function that evaluates many global batches in one call into TensorFlow.

    Returns:
        A function of an iterator over batches, their order, the first step and the number of steps.
    """
    test_step = _test_step(model)

    def run_steps(
        iterator: Any, examples: int, batch_size: int, first_step: tf.Tensor, steps: tf.Tensor
    ) -> None:
        order = Order(examples, batch_size, shuffle=False)
        for i in tf.range(steps):
            test_step(next(iterator), order, first_step + i)

    run = function_of(model, run_steps)

    def call(iterator: Any, order: Order, first_step: int, steps: int) -> None:
        first, count = tf.constant(first_step, tf.int64), tf.constant(steps, tf.int64)
        run(iterator, order.examples, order.global_batch_size, first, count)

    return call


@once_per_compile
def test_next(model: keras.Model) -> Callable[[Any, int], bool]:
    """Returns a function that evaluates the next batch of a dataset that TensorFlow shards.

    Returns:
        A function of an iterator and the number of earlier batches. It returns whether there was
        another batch. The batch is drawn inside of the graph: its shape, seen from Python, may
        differ between workers, and they would trace different functions and deadlock.
    """
    test_step = _test_step(model)

    def run_next(iterator: Any, step: tf.Tensor) -> tf.Tensor:
        batch = iterator.get_next_as_optional()
        if batch.has_value():
            test_step(batch.get_value(), None, step)
        return batch.has_value()

    run = function_of(model, run_next)
    return lambda iterator, step: bool(run(iterator, tf.constant(step, tf.int64)))


@once_per_compile
def predict_step(model: keras.Model) -> Callable[[Any, int], Any]:
    """Returns a function that predicts one batch; rows stay on their replicas.

    Returns:
        A function of a batch and the number of earlier batches.
    """
    strategy = model.distribute_strategy

    @tf.autograph.experimental.do_not_convert
    def on_replica(batch: Any) -> Any:
        examples = count_examples(batch)
        share = Share(examples, examples, 1, may_be_empty=strategy.num_replicas_in_sync > 1)
        rows = model.predict_step(share.padded(batch))
        return tf.nest.map_structure(lambda leaf: leaf[:examples], rows)

    def run_batch(batch: Any, step: tf.Tensor) -> Any:
        with keras_private.seeds_drawn_from(step):
            return strategy.run(on_replica, args=(batch,))

    run = function_of(model, run_batch, reduce_retracing=True)
    return lambda batch, step: run(batch, tf.constant(step, tf.int64))


def _test_step(model: keras.Model) -> Callable[[Any, Order | None, tf.Tensor], None]:
    strategy = model.distribute_strategy
    losses = TracedLosses()
    replica = threading.local()  # MirroredStrategy traces each replica in a thread of its own

    def run(batch: Any, order: Order | None, step: tf.Tensor) -> None:
        @tf.autograph.experimental.do_not_convert
        def on_replica(batch: Any) -> None:
            replica.share = share_of(batch, order, step)
            with metrics.restored_if_empty(model, replica.share):
                model.test_step(replica.share.padded(batch))

        with (
            # Without it, draws of layers would depend on everything evaluated before.
            keras_private.seeds_drawn_from(step),
            contextlib.nullcontext()
            if strategy.num_replicas_in_sync == 1
            else keras_private.losses_as_shares(losses, lambda: replica.share),
        ):
            strategy.run(on_replica, args=(batch,))

    return run
