"""``tfdp.evaluate`` and ``tfdp.predict``: every example once, in order, over all workers."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfdp import feed, keras_private
from tfdp.errors import BadInput
from tfdp.feed import Preprocess
from tfdp.loop import CALL_S
from tfdp.sources import Source, as_data
from tfdp.steps import predict_step, read_metrics, test_step, test_steps
from tfdp.team import Team, team_of
from tfdp.words import AutoShard


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
    in_vain: Callable[[], bool] = lambda: False,
) -> dict[str, Any]:
    """Computes a compiled model's loss and metrics over all of the data, by all workers.

    Every worker calls it with the same arguments. The model's metrics are reset before.

    Args:
        model: compiled in the strategy's scope.
        x: a source, a batched ``tf.data.Dataset``, or arrays.
        y: labels, where ``x`` is arrays.
        batch_size: examples a step over all replicas, for a source or arrays; 32 by default.
        sample_weight: float[examples], where ``x`` is arrays.
        steps: batches of a dataset to look at; all by default.
        preprocess: applied to the features of each example.
        auto_shard: how TensorFlow divides a dataset; None leaves it to the dataset's options.
        callbacks: told of the test's begin and end.
        in_vain: asked between calls into TensorFlow, of a source's data; once true, this worker
            leaves out the rest of its share, and nobody must look at what comes out.

    Returns:
        The value of each metric by name, "loss" first; equal on all workers.
    """
    team = team_of(model.distribute_strategy)
    data = as_data(x, y, sample_weight)
    if isinstance(data, Source):
        if steps is not None:
            raise BadInput(f"steps is {steps}, which is for datasets: a source knows its end")
        dataset, count = feed.shares(data, team, batch_size or 32, preprocess=preprocess)
        keras_private.build(model, dataset.element_spec)
        model.reset_metrics()
        _tell(callbacks, "on_test_begin", None)
        _run_all(test_steps(model), iter(_endless(dataset, team)), count, in_vain)
    else:
        dataset = _dataset(data, steps, preprocess, auto_shard)
        keras_private.build(model, dataset.element_spec)
        model.reset_metrics()
        _tell(callbacks, "on_test_begin", None)
        test = test_step(model)
        for batch in team.strategy.experimental_distribute_dataset(dataset):
            test(batch)
    logs = read_metrics(model)()
    team.settle()
    _tell(callbacks, "on_test_end", logs)
    return logs


def predict(
    model: keras.Model,
    x: Any,
    *,
    batch_size: int | None = None,
    steps: int | None = None,
    preprocess: Preprocess | None = None,
    auto_shard: AutoShard | None = None,
) -> Any:
    """Computes a model's outputs for all of the data, by all workers.

    Every worker calls it with the same arguments and gets all rows.

    Args:
        model: built in the strategy's scope.
        x: a source, a batched ``tf.data.Dataset``, or arrays; labels are not looked at.
        batch_size: examples a step over all replicas, for a source or arrays; 32 by default.
        steps: batches of a dataset to predict; all by default.
        preprocess: applied to the features of each example.
        auto_shard: how TensorFlow divides a dataset; None leaves it to the dataset's options.

    Returns:
        What the model returns, as arrays with a row for each example, in the data's order (with
        ``auto_shard="file"``, in an order of TensorFlow's).
    """
    team = team_of(model.distribute_strategy)
    data = as_data(x)
    step = predict_step(model)
    strategy = team.strategy
    if isinstance(data, Source):
        dataset, count = feed.shares(data, team, batch_size or 32, preprocess=preprocess)
        iterator = iter(_endless(dataset, team))
        batches = [strategy.experimental_local_results(step(next(iterator))) for _ in range(count)]
        in_order = [_arrays(rows) for replica in zip(*batches, strict=True) for rows in replica]
        rows = _from_all_workers(_concatenated(in_order), team)
        team.settle()
        return rows
    dataset = _dataset(data, steps, preprocess, auto_shard)
    gathered = []
    for batch in strategy.experimental_distribute_dataset(dataset):
        gathered.append(_arrays(strategy.gather(step(batch), axis=0)))
    if not gathered:
        raise BadInput("the dataset is empty: it has to have at least one example")
    team.settle()
    return _concatenated(gathered)


def _dataset(
    data: tf.data.Dataset,
    steps: int | None,
    preprocess: Preprocess | None,
    auto_shard: AutoShard | None,
) -> tf.data.Dataset:
    data = data if steps is None else data.take(steps)
    return feed.sharded(feed.preprocessed(data, preprocess), auto_shard)


def _run_all(
    run: Callable[[Any, int], None], iterator: Any, steps: int, in_vain: Callable[[], bool]
) -> None:
    """Runs ``steps`` steps in calls of about ``CALL_S`` seconds."""
    size, done = 1, 0
    while done < steps and not in_vain():
        size = min(size, steps - done)
        began = time.perf_counter()
        run(iterator, size)
        step_s = (time.perf_counter() - began) / size
        done += size
        size = max(1, min(int(CALL_S / max(step_s, 1e-9)), 8 * size))


def _endless(dataset: tf.data.Dataset, team: Team) -> Any:
    """Distributed, and without an end: then workers need not agree on one at every step."""
    return team.strategy.distribute_datasets_from_function(lambda _: dataset.repeat())


def _arrays(rows: Any) -> Any:
    return tf.nest.map_structure(lambda leaf: leaf.numpy(), rows)


def _concatenated(parts: list[Any]) -> Any:
    return tf.nest.map_structure(lambda *leaves: np.concatenate(leaves), *parts)


def _from_all_workers(rows: Any, team: Team) -> Any:
    """Every worker's rows, one worker's after another's, on all of them."""
    if team.workers == 1:
        return rows

    def gathered(leaf: np.ndarray) -> np.ndarray:
        counts = team.gather(np.array([len(leaf)], np.int64))[:, 0]
        parts = team.gather_bytes(leaf.tobytes())
        return np.concatenate(
            [
                np.frombuffer(part, leaf.dtype).reshape(count, *leaf.shape[1:])
                for part, count in zip(parts, counts, strict=True)
            ]
        )

    return tf.nest.map_structure(gathered, rows)


def _tell(callbacks: keras.callbacks.CallbackList | None, hook: str, logs: Any) -> None:
    if callbacks is not None:
        getattr(callbacks, hook)(logs)
