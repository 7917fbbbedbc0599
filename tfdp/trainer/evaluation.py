"""``tfdp.evaluate``: loss and metrics over every example once, by all workers."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from tfdp.choices import AutoShard
from tfdp.data import pipeline
from tfdp.data.preprocessing import Preprocess
from tfdp.data.sources import Source, as_data
from tfdp.errors import BadInput
from tfdp.step import keras_private
from tfdp.step.eval_step import test_logs, test_next, test_steps
from tfdp.trainer import callbacks as callbacks_module
from tfdp.trainer import compiled, keras_methods
from tfdp.trainer.scores import Scores
from tfdp.trainer.update_loop import CALL_S, MAX_GROWTH
from tfdp.whereabouts import SIGNS, marked
from tfdp.workers.collectives import Workers, workers_of


def evaluate(
    model: keras.Model,
    x: Any = None,
    y: Any = None,
    batch_size: int | None = None,
    verbose: str | int = "auto",
    sample_weight: Any = None,
    steps: int | None = None,
    callbacks: Any = None,
    return_dict: bool | None = None,
    *,
    preprocess: Preprocess | None = None,
    auto_shard: AutoShard | None = None,
) -> Any:
    """Computes a compiled model's loss and metrics over all data, by all workers.

    Every worker calls it with the same arguments. It resets the model's metrics first.

    Args:
        model: a model of the strategy's scope, compiled.
        x: a source, a batched ``tf.data.Dataset``, or arrays.
        y: labels, if ``x`` is arrays.
        batch_size: examples per step over all replicas, for a source or arrays; 32 by default.
        verbose: 0 prints nothing, 1 ("auto") a progress bar, 2 one line; on the chief.
        sample_weight: float[examples], if ``x`` is arrays.
        steps: batches to evaluate; all by default.
        callbacks: Keras callbacks, whose ``on_test_…`` are called. One that overrides
            ``on_test_batch_begin`` or ``on_test_batch_end`` is called for every batch.
        return_dict: True returns a plain dict, False what Keras returns: a list of the values, or
            the value if there is only one.
        preprocess: applied to the features of each example.
        auto_shard: how TensorFlow shards a dataset; None uses the dataset's options.

    Returns:
        ``Scores``: the value of each metric by name, "loss" first. It is a dict, and can be used as
        Keras's list, too. Equal on all workers.
    """
    logs = evaluate_all(
        model,
        as_data(x, y, sample_weight),
        batch_size=batch_size,
        steps=steps,
        preprocess=preprocess,
        auto_shard=auto_shard,
        callbacks=callbacks,
        verbose=verbose,
    )
    if return_dict:
        return logs
    scores = Scores({name: logs[name] for name in keras_private.names_in_order(model, logs)})
    return scores if return_dict is None else scores.as_keras()


@marked("an evaluation")
def evaluate_all(
    model: keras.Model,
    data: Source | tf.data.Dataset,
    *,
    batch_size: int | None = None,
    steps: int | None = None,
    preprocess: Preprocess | None = None,
    auto_shard: AutoShard | None = None,
    callbacks: Any = None,
    verbose: str | int = 0,
    between_calls: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """Evaluates as ``evaluate`` does, and returns a plain dict.

    Args:
        model: as for ``evaluate``, like all that is not named here.
        data: a source or a batched dataset.
        batch_size: see ``evaluate``.
        steps: see ``evaluate``.
        preprocess: see ``evaluate``.
        auto_shard: see ``evaluate``.
        callbacks: see ``evaluate``.
        verbose: see ``evaluate``.
        between_calls: called between calls into TensorFlow, at the same points on all workers; an
            exception that it raises ends the evaluation.
    """
    keras_methods.adapt()
    workers = workers_of(model.distribute_strategy)
    if isinstance(data, Source):
        batches = pipeline.in_order(data, batch_size, workers, preprocess)
        compiled.prepare(model, "test_step", batches)
        steps = min(steps or batches.steps_per_epoch, batches.steps_per_epoch)
        iterator = batches.iterator()

        def run_steps(first_step: int, count: int) -> bool:
            test_steps(model)(iterator, batches.smallest_batch, first_step, count)
            return True

        batches_to_run = _Batches(run_steps, steps, steps, MAX_GROWTH)
    else:
        batches = pipeline.for_evaluation(data, workers, steps, preprocess, auto_shard)
        compiled.prepare(model, "test_step", batches)
        iterator = batches.iterator()

        def run_next(first_step: int, count: int) -> bool:
            has_batch, is_alike = test_next(model)(iterator, first_step)
            if not is_alike:
                workers.settle()
                read = f"batches (batch {first_step} or earlier)"
                raise BadInput(pipeline.describe_difference(read))
            return has_batch

        length = int(data.cardinality())
        announced = steps if steps is not None or length < 0 else length
        batches_to_run = _Batches(run_next, steps, announced, max_growth=1)
    hooks = callbacks_module.listed(
        callbacks, model, workers, verbose=verbose, steps=batches_to_run.announced
    )
    model.stop_evaluating = False
    hooks.on_test_begin()
    model.reset_metrics()
    _run_all(batches_to_run, model, hooks, workers, between_calls)
    logs = test_logs(model).read()
    workers.settle()
    hooks.on_test_end(logs)
    return logs


def check(data: Source | tf.data.Dataset, auto_shard: AutoShard, workers: Workers) -> None:
    """Raises BadInput, on all workers, if data can't be evaluated; a collective."""
    if isinstance(data, Source):
        pipeline.check_sources_are_alike(data, workers)
    else:
        pipeline.check_evaluation(data, workers, None, auto_shard)


class _Batches(NamedTuple):
    """Batches to evaluate.

    Args:
        run: evaluates some batches, from a step on; returns False if there is none left.
        steps: number of batches; None if the data's end decides.
        announced: number of batches as far as known; as TensorFlow shards, there may be more.
        max_growth: from one call to the next, in batches; 1 for calls of one batch.
    """

    run: Callable[[int, int], bool]
    steps: int | None
    announced: int | None
    max_growth: int


def _run_all(
    batches: _Batches,
    model: keras.Model,
    callbacks: keras.callbacks.CallbackList,
    workers: Workers,
    between_calls: Callable[[], None],
) -> None:
    """Runs batches in calls of about ``CALL_S``, which have the same sizes on all workers.

    A callback ends it by ``model.stop_evaluating``, if one observes each batch.
    """
    observes = callbacks_module.observe_each_batch(callbacks.callbacks, "test")
    is_observed = bool(workers.gather(np.array([observes], np.int32)).any())
    size, done = model.steps_per_execution if is_observed else 1, 0
    while batches.steps is None or done < batches.steps:
        left = 1 if batches.steps is None or batches.max_growth == 1 else batches.steps - done
        count = min(size, left)
        if done != batches.announced:
            callbacks.on_test_batch_begin(done)
        began_s = time.perf_counter()
        if not batches.run(done, count):
            return
        step_s = (time.perf_counter() - began_s) / count
        done += count
        SIGNS.give()
        callbacks.on_test_batch_end(done - 1, test_logs(model).read() if is_observed else None)
        if done == batches.steps:
            return
        between_calls()
        if is_observed:
            if workers.gather(np.array([model.stop_evaluating], np.int32)).any():
                return
        elif batches.max_growth > 1:
            slowest_s = float(workers.gather(np.array([step_s])).max())
            size = max(1, min(int(CALL_S / max(slowest_s, 1e-9)), batches.max_growth * size))
