"""``tfdp.predict``: the model's outputs for every example, in order, on all workers."""

from __future__ import annotations

import itertools
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfdp.choices import AutoShard
from tfdp.data import pipeline
from tfdp.data.order import Order
from tfdp.data.pipeline import Preprocess
from tfdp.data.sources import Source, as_data
from tfdp.errors import BadInput
from tfdp.step.eval_step import predict_step
from tfdp.workers.collectives import Workers, workers_of


def predict(
    model: keras.Model,
    x: Any,
    *,
    batch_size: int | None = None,
    steps: int | None = None,
    preprocess: Preprocess | None = None,
    auto_shard: AutoShard | None = None,
) -> Any:
    """Computes a model's outputs for all data, by all workers.

    Every worker calls it with the same arguments and gets all rows.

    Args:
        model: a model that was built in the strategy's scope.
        x: a source, a batched ``tf.data.Dataset``, or arrays; labels are ignored.
        batch_size: examples per step over all replicas, for a source or arrays; 32 by default.
        steps: batches of a dataset to predict; all by default.
        preprocess: applied to the features of each example.
        auto_shard: how TensorFlow shards a dataset; None uses the dataset's options.

    Returns:
        The model's outputs as arrays with one row per example, in the data's order (with
        ``auto_shard="file"``, in an order of TensorFlow's).
    """
    workers = workers_of(model.distribute_strategy)
    strategy = workers.strategy
    data = as_data(x)
    predict_batch = predict_step(model)
    if isinstance(data, Source):
        batches, order = pipeline.in_order(data, batch_size, workers, preprocess)
        iterator = batches.iterator()
        own_rows: list[Any] = []
        for step in range(batches.steps_per_epoch):
            rows = predict_batch(next(iterator), step)
            own_rows += map(_as_arrays, strategy.experimental_local_results(rows))
        rows = _gathered(_concatenated(own_rows), order, workers)
        workers.settle()
        return rows
    dataset = pipeline.for_evaluation(data, workers, steps, preprocess, auto_shard)
    rows_of_batches = []
    distributed = iter(strategy.experimental_distribute_dataset(dataset))
    for step, batch in enumerate(itertools.islice(distributed, steps)):
        rows_of_batches.append(_as_arrays(strategy.gather(predict_batch(batch, step), axis=0)))
    if not rows_of_batches:
        raise BadInput("the dataset is empty: it has to have at least one example")
    workers.settle()
    return _concatenated(rows_of_batches)


def _as_arrays(rows: Any) -> Any:
    return tf.nest.map_structure(lambda leaf: leaf.numpy(), rows)


def _concatenated(parts: list[Any]) -> Any:
    return tf.nest.map_structure(lambda *leaves: np.concatenate(leaves), *parts)


def _gathered(rows: Any, order: Order, workers: Workers) -> Any:
    """Returns the rows of all workers, in the data's order, on all of them."""
    if workers.count == 1:
        return rows
    places = [_places_of(worker, order, workers) for worker in range(workers.count)]

    def gathered(leaf: np.ndarray) -> np.ndarray:
        whole = np.empty((order.examples, *leaf.shape[1:]), leaf.dtype)
        for place, data in zip(places, workers.gather_bytes(leaf.tobytes()), strict=True):
            part = np.frombuffer(data, leaf.dtype)
            whole[place] = part.reshape(-1, *leaf.shape[1:])
        return whole

    return tf.nest.map_structure(gathered, rows)


def _places_of(worker: int, order: Order, workers: Workers) -> np.ndarray:
    """Returns the places in the data of the rows of a worker: its slice of every global batch."""
    slices = []
    for step in range(order.steps_per_epoch):
        first, size = order.examples_before(step), order.batch_size(step)
        start, stop = (
            first + size * replica // workers.replicas
            for replica in (worker * workers.local_replicas, (worker + 1) * workers.local_replicas)
        )
        slices.append(np.arange(start, stop))
    return np.concatenate(slices)
