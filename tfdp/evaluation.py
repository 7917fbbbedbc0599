"""``tfdp.evaluate`` and ``tfdp.predict``: every example once, in order, over all workers."""

from __future__ import annotations

import functools
import itertools
import time
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfdp import feed, keras_private, sharding
from tfdp.errors import BadInput
from tfdp.feed import Batches, Preprocess
from tfdp.loop import CALL_S
from tfdp.order import Order
from tfdp.sources import Source, as_data
from tfdp.steps import predict_step, read_metrics, test_next, test_steps
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
    between_calls: Callable[[], None] = lambda: None,
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
        between_calls: called between calls into TensorFlow, at the same places on all workers;
            what it raises ends the evaluation.

    Returns:
        The value of each metric by name, "loss" first; equal on all workers.
    """
    team = team_of(model.distribute_strategy)
    data = as_data(x, y, sample_weight)
    if isinstance(data, Source):
        if steps is not None:
            raise BadInput(f"steps is {steps}, which is for datasets: a source knows its end")
        batches, order = _in_order(data, batch_size, team, preprocess)
        keras_private.build(model, batches.element_spec)
        model.reset_metrics()
        _tell(callbacks, "on_test_begin", None)
        run = functools.partial(test_steps(model), batches.iterator(), order)
        _run_all(run, batches.steps_per_epoch, team, between_calls)
    else:
        dataset = _dataset(data, team, steps, preprocess, auto_shard)
        keras_private.build(model, dataset.element_spec)
        model.reset_metrics()
        _tell(callbacks, "on_test_begin", None)
        iterator = iter(team.strategy.experimental_distribute_dataset(dataset))
        for step in range(steps) if steps is not None else itertools.count():
            if not test_next(model)(iterator, step):
                break
            between_calls()
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
    predict_on_replicas = predict_step(model)
    strategy = team.strategy
    if isinstance(data, Source):
        batches, order = _in_order(data, batch_size, team, preprocess)
        iterator = batches.iterator()
        mine: list[Any] = []
        for number in range(batches.steps_per_epoch):
            rows = predict_on_replicas(next(iterator), number)
            mine += map(_arrays, strategy.experimental_local_results(rows))
        rows = _from_all_workers(_concatenated(mine), order, team)
        team.settle()
        return rows
    dataset = _dataset(data, team, steps, preprocess, auto_shard)
    gathered = []
    batches_of_all = iter(strategy.experimental_distribute_dataset(dataset))
    for number, batch in enumerate(itertools.islice(batches_of_all, steps)):
        gathered.append(_arrays(strategy.gather(predict_on_replicas(batch, number), axis=0)))
    if not gathered:
        raise BadInput("the dataset is empty: it has to have at least one example")
    team.settle()
    return _concatenated(gathered)


def check(data: Source | tf.data.Dataset, auto_shard: AutoShard, team: Team) -> None:
    """Raises BadInput, on all workers, if data can't be evaluated on; a collective."""
    if isinstance(data, Source):
        feed.check_same_length(data, team)
    else:
        _dataset(data, team, None, None, auto_shard)


def _dataset(
    data: tf.data.Dataset,
    team: Team,
    steps: int | None,
    preprocess: Preprocess | None,
    auto_shard: AutoShard | None,
) -> tf.data.Dataset:
    if steps is None and data.cardinality() == tf.data.INFINITE_CARDINALITY:
        raise BadInput(
            "the dataset to evaluate or predict never ends: give steps (validation_steps), or "
            "leave out repeat()"
        )
    auto_shard = sharding.settled(data, auto_shard, team, training=False)
    return feed.sharded(feed.preprocessed(data, preprocess), auto_shard)


def _in_order(
    data: Source, batch_size: int | None, team: Team, preprocess: Preprocess | None
) -> tuple[Batches, Order]:
    """The global batches that one replica alone would look at, in the data's order."""
    order = Order(len(data), batch_size or 32, shuffle=False)
    return feed.from_source(data, order, team, training=False, preprocess=preprocess), order


def _run_all(
    run: Callable[[int, int], None], steps: int, team: Team, between_calls: Callable[[], None]
) -> None:
    """Runs steps (from which, how many) in calls of about ``CALL_S``, alike on all workers."""
    size, done = 1, 0
    while done < steps:
        size = min(size, steps - done)
        began_s = time.perf_counter()
        run(done, size)
        step_s = (time.perf_counter() - began_s) / size
        done += size
        if done < steps:
            between_calls()
            slowest_s = float(team.gather(np.array([step_s])).max())
            size = max(1, min(int(CALL_S / max(slowest_s, 1e-9)), 8 * size))


def _arrays(rows: Any) -> Any:
    return tf.nest.map_structure(lambda leaf: leaf.numpy(), rows)


def _concatenated(parts: list[Any]) -> Any:
    return tf.nest.map_structure(lambda *leaves: np.concatenate(leaves), *parts)


def _from_all_workers(rows: Any, order: Order, team: Team) -> Any:
    """Every worker's rows of each global batch, in order, on all of them."""
    if team.workers == 1:
        return rows
    places: list[list[np.ndarray]] = [
        [] for _ in range(team.workers)
    ]  # in the data, of each worker's rows
    for step in range(order.steps_per_epoch):
        first, size = order.examples_before(step), order.batch_size(step)
        for worker in range(team.workers):
            start, stop = (
                first + size * replica // team.replicas
                for replica in (worker * team.local_replicas, (worker + 1) * team.local_replicas)
            )
            places[worker].append(np.arange(start, stop))

    def gathered(leaf: np.ndarray) -> np.ndarray:
        whole = np.empty((order.examples, *leaf.shape[1:]), leaf.dtype)
        for place, part in zip(places, team.gather_bytes(leaf.tobytes()), strict=True):
            theirs = np.frombuffer(part, leaf.dtype)
            whole[np.concatenate(place)] = theirs.reshape(-1, *leaf.shape[1:])
        return whole

    return tf.nest.map_structure(gathered, rows)


def _tell(callbacks: keras.callbacks.CallbackList | None, hook: str, logs: Any) -> None:
    if callbacks is not None:
        getattr(callbacks, hook)(logs)
