"""Evaluation and prediction steps: Keras's ``test_step`` and ``predict_step`` on all replicas."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from tfdp.data.batch_digest import same_examples
from tfdp.data.replica_batch import ReplicaBatch
from tfdp.step import keras_private, random_draws
from tfdp.step.all_reduce import all_reduce_sum, varying_noted
from tfdp.step.building import traceable_step
from tfdp.step.logs import StepLogs
from tfdp.step.losses import ShareLosses
from tfdp.step.per_compile import function_of, once_per_compile
from tfdp.step.rules import Rules, kept_rules
from tfdp.step.share import as_replica_batch, share_of
from tfdp.whereabouts import marked


@once_per_compile
def test_steps(model: keras.Model) -> Callable[[Any, int, int, int], None]:
    """Returns a function that evaluates many global batches in one call into TensorFlow.

    Returns:
        A function of an iterator over batches, the size of the smallest global batch (0 if that is
        unknown), the first step and the number of steps.
    """
    test_step = _test_step(model)
    replicas = model.distribute_strategy.num_replicas_in_sync
    varies: list[bool] = []  # not empty once a step that gathers is traced

    def run_steps(
        iterator: Any, smallest_batch: int, first_step: tf.Tensor, steps: tf.Tensor
    ) -> None:
        for i in tf.range(steps):
            test_step(next(iterator), smallest_batch, first_step + i)

    run = function_of(model, run_steps)

    @marked("an evaluation", input="iterator")
    def call(iterator: Any, smallest_batch: int, first_step: int, steps: int) -> None:
        # As in training: within one call, the shape of what is gathered has to stay the same.
        per_call = 1 if varies else steps
        for step in range(first_step, first_step + steps, per_call):
            first, count = tf.constant(step, tf.int64), tf.constant(per_call, tf.int64)
            with varying_noted(lambda: varies.append(True)):
                # Each other size is traced.
                run(iterator, min(smallest_batch, replicas), first, count)

    return call


@once_per_compile
def test_next(model: keras.Model) -> Callable[[Any, int], tuple[bool, bool]]:
    """Returns a function that evaluates the next batch of a dataset of any length.

    Returns:
        A function of an iterator and the number of earlier batches. It returns whether there was
        another batch, and whether all workers have read the same so far; if not, it evaluates
        nothing. The batch is drawn inside of the graph: its shape, seen from Python, may differ
        between workers, and they would trace different functions and deadlock.
    """
    test_step = _test_step(model)
    strategy = model.distribute_strategy

    @tf.autograph.experimental.do_not_convert
    def digest_of(batch: Any) -> tf.Tensor:
        if not isinstance(batch, ReplicaBatch):
            return tf.constant(0, tf.int64)
        return same_examples(strategy.experimental_local_results(batch.digest)[0])

    @tf.autograph.experimental.do_not_convert
    def are_alike(digest: tf.Tensor) -> tf.Tensor:
        if strategy.num_replicas_in_sync == 1:
            return tf.constant(True)
        total = strategy.run(lambda: all_reduce_sum(tf.identity(digest)))
        total = strategy.experimental_local_results(total)[0]
        return tf.equal(total, digest * strategy.num_replicas_in_sync)

    def run_next(iterator: Any, step: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        batch = iterator.get_next_as_optional()
        has_batch, digest = batch.has_value(), tf.constant(-1, tf.int64)
        if has_batch:
            digest = digest_of(batch.get_value())
        is_alike = are_alike(digest)
        if has_batch and is_alike:
            test_step(batch.get_value(), 0, step)
        return has_batch, is_alike

    run = function_of(model, run_next)

    @marked("an evaluation", input="iterator")
    def call(iterator: Any, step: int) -> tuple[bool, bool]:
        has_batch, is_alike = run(iterator, tf.constant(step, tf.int64))
        return bool(has_batch), bool(is_alike)

    return call


class PredictStep:
    """Predicts one batch; rows stay on their replicas. Call it with a batch and its number.

    Args:
        model: the model.
        local_replicas: number of replicas of each worker, if a worker predicts batches alone; None
            if all workers predict each batch together.
    """

    def __init__(self, model: keras.Model, local_replicas: int | None = None) -> None:
        strategy = self._strategy = model.distribute_strategy

        @tf.autograph.experimental.do_not_convert
        def on_replica(batch: Any) -> Any:
            batch = as_replica_batch(batch, needs_total=False)
            rows = model.predict_step(batch.data)
            return tf.nest.map_structure(lambda leaf: leaf[: batch.examples], rows)

        def run_batch(batch: Any, step: tf.Tensor) -> Any:
            with keras_private.seeds_drawn_from(step, local_replicas):
                return strategy.run(on_replica, args=(batch,))

        self._run = function_of(model, run_batch, reduce_retracing=True)

    def __call__(self, batch: Any, step: int) -> Any:
        """Returns the rows of a batch; ``step`` is the number of earlier batches."""
        return self._run(batch, tf.constant(step, tf.int64))

    def described(self, sample: Any) -> tuple[Any, bool]:
        """Returns what the step gives, and whether replicas exchange something for it.

        Args:
            sample: a batch, or its spec if there is one local replica.

        Returns:
            A replica's rows, as tensors of a graph where there is one; and whether the graph has a
            collective, so that no worker can compute it without the others.
        """
        local_results = self._strategy.experimental_local_results
        trace = getattr(self._run, "get_concrete_function", None)
        if trace is None:  # run eagerly, on the only replica
            return local_results(self(sample, 0))[0], False
        traced = trace(sample, tf.TensorSpec([], tf.int64))
        return local_results(traced.structured_outputs)[0], _has_collective(traced.graph)


def _has_collective(graph: Any) -> bool:
    definition = graph.as_graph_def()
    nodes = [definition.node, *(function.node_def for function in definition.library.function)]
    return any(node.op.startswith("Collective") for each in nodes for node in each)


@once_per_compile
def predict_step(model: keras.Model) -> PredictStep:
    """Returns the step with which all workers together predict a batch of a model."""
    return PredictStep(model)


@once_per_compile
def test_logs(model: keras.Model) -> StepLogs:
    """Returns the logs of a model's ``test_step``."""
    return StepLogs(model, "test_step", kept_rules(model, "test_step") or Rules())


def _test_step(model: keras.Model) -> Callable[[Any, int, tf.Tensor], None]:
    strategy = model.distribute_strategy
    losses = ShareLosses(kept_rules(model, "test_step") or Rules())
    logs = test_logs(model)
    test_step = traceable_step(model, "test_step")

    def run(batch: Any, smallest_batch: int, step: tf.Tensor) -> None:
        @tf.autograph.experimental.do_not_convert
        def on_replica(batch: Any) -> None:
            batch = as_replica_batch(batch)
            share = share_of(batch, smallest_batch)
            with losses.of(share, model):
                logs.keep(test_step(batch.data), share, is_first=True)

        with (
            # Without it, draws of layers would depend on everything evaluated before.
            keras_private.seeds_drawn_from(step),
            random_draws.stateless(random_draws.of_step(step)),
            logs.noted(),
            contextlib.nullcontext() if strategy.num_replicas_in_sync == 1 else losses.adapted(),
        ):
            strategy.run(on_replica, args=(batch,))

    return run
