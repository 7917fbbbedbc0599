"""``tfdp.evaluate``: loss and metrics over every example once, by all workers."""

from __future__ import annotations

import functools
import itertools
import time
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfdp.choices import AutoShard
from tfdp.data import pipeline
from tfdp.data.preprocessing import Preprocess
from tfdp.data.sources import Source, as_data
from tfdp.errors import BadInput
from tfdp.step.eval_step import test_logs, test_next, test_steps
from tfdp.step.preparation import prepare_step
from tfdp.trainer.update_loop import CALL_S, MAX_GROWTH
from tfdp.workers.collectives import Workers, workers_of


def evaluate(
    model: keras.Model,
    x: Any,
    y: Any = None,
    *,
    batch_size: int | None = None,
    sample_weight: Any = None,
    steps: int | None = None,
    preprocess: Preprocess | None = None,
    auto_shard: AutoShard | None = None,
    callbacks: keras.callbacks.CallbackList | None = None,
    between_calls: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """Computes a compiled model's loss and metrics over all data, by all workers.

    Every worker calls it with the same arguments. It resets the model's metrics first.

    Args:
        model: a model that was compiled in the strategy's scope.
        x: a source, a batched ``tf.data.Dataset``, or arrays.
        y: labels, if ``x`` is arrays.
        batch_size: examples per step over all replicas, for a source or arrays; 32 by default.
        sample_weight: float[examples], if ``x`` is arrays.
        steps: batches of a dataset to evaluate; all by default.
        preprocess: applied to the features of each example.
        auto_shard: how TensorFlow shards a dataset; None uses the dataset's options.
        callbacks: their ``on_test_begin`` and ``on_test_end`` are called.
        between_calls: called between calls into TensorFlow, at the same points on all workers; an
            exception that it raises ends the evaluation.

    Returns:
        The value of each metric by name, "loss" first; equal on all workers.
    """
    workers = workers_of(model.distribute_strategy)
    data = as_data(x, y, sample_weight)
    if isinstance(data, Source):
        if steps is not None:
            raise BadInput(f"steps is {steps}, which is for datasets: a source has a known end")
        batches = pipeline.in_order(data, batch_size, workers, preprocess)
        prepare_step(model, "test_step", batches)
        model.reset_metrics()
        if callbacks is not None:
            callbacks.on_test_begin()
        run = functools.partial(test_steps(model), batches.iterator(), batches.smallest_batch)
        _run_all(run, batches.steps_per_epoch, workers, between_calls)
    else:
        batches = pipeline.for_evaluation(data, workers, steps, preprocess, auto_shard)
        prepare_step(model, "test_step", batches)
        model.reset_metrics()
        if callbacks is not None:
            callbacks.on_test_begin()
        iterator = batches.iterator()
        for step in range(steps) if steps is not None else itertools.count():
            has_batch, is_alike = test_next(model)(iterator, step)
            if not is_alike:
                workers.settle()
                raise BadInput(pipeline.describe_difference(f"batches (batch {step} or earlier)"))
            if not has_batch:
                break
            between_calls()
    logs = test_logs(model).read()
    workers.settle()
    if callbacks is not None:
        callbacks.on_test_end(logs)
    return logs


def check(data: Source | tf.data.Dataset, auto_shard: AutoShard, workers: Workers) -> None:
    """Raises BadInput, on all workers, if data can't be evaluated; a collective."""
    if isinstance(data, Source):
        pipeline.check_sources_are_alike(data, workers)
    else:
        pipeline.check_evaluation(data, workers, None, auto_shard)


def _run_all(
    run: Callable[[int, int], None],
    steps: int,
    workers: Workers,
    between_calls: Callable[[], None],
) -> None:
    """Calls ``run(first step, number of steps)`` in calls of about ``CALL_S``.

    The calls have the same sizes on all workers.
    """
    size, done = 1, 0
    while done < steps:
        size = min(size, steps - done)
        began_s = time.perf_counter()
        run(done, size)
        step_s = (time.perf_counter() - began_s) / size
        done += size
        if done < steps:
            between_calls()
            slowest_s = float(workers.gather(np.array([step_s])).max())
            size = max(1, min(int(CALL_S / max(slowest_s, 1e-9)), MAX_GROWTH * size))
