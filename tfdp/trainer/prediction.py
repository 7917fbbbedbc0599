"""``tfdp.predict``: the model's outputs for every example, in order, on all workers."""

from __future__ import annotations

import contextlib
import itertools
import os
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfdp.choices import AutoShard, PredictionFormat
from tfdp.data import pipeline
from tfdp.data.order import bounds
from tfdp.data.preprocessing import Preprocess
from tfdp.data.replica_batch import ReplicaBatch
from tfdp.data.sources import Source, as_data
from tfdp.errors import BadInput
from tfdp.provenance import weights_sha256
from tfdp.step.building import build_by_call
from tfdp.step.eval_step import predict_step
from tfdp.trainer import callbacks as callbacks_module
from tfdp.trainer import keras_methods
from tfdp.trainer.batch_prediction import predict_into
from tfdp.trainer.prediction_folder import PredictionFolder
from tfdp.whereabouts import SIGNS, marked
from tfdp.workers.collectives import Workers, workers_of


@marked("a prediction")
def predict(
    model: keras.Model,
    x: Any,
    batch_size: int | None = None,
    verbose: str | int = "auto",
    steps: int | None = None,
    callbacks: Any = None,
    *,
    preprocess: Preprocess | None = None,
    auto_shard: AutoShard | None = None,
    output: str | os.PathLike[str] | None = None,
    format: PredictionFormat | None = None,
    batches_per_part: int | None = None,
) -> Any:
    """Computes a model's outputs for all data, by all workers.

    Every worker calls it with the same arguments and gets all rows. (``model.predict`` computes all
    rows on each worker that calls it.) With ``output``, each worker writes the rows of its own
    parts of the data into a folder instead. Memory then holds a few batches, each computed by one
    worker, and a call that was killed can be repeated: it computes what is missing.

    Args:
        model: a model that was built in the strategy's scope.
        x: a source, a batched ``tf.data.Dataset``, or arrays; labels are ignored.
        batch_size: examples per step over all replicas, for a source or arrays; 32 by default.
        verbose: 0 prints nothing, 1 ("auto") a progress bar, 2 one line; on the chief.
        steps: batches to predict; all by default.
        callbacks: Keras callbacks, whose ``on_predict_…`` are called. If one overrides
            ``on_predict_batch_end``, workers exchange the outputs of each batch.
        preprocess: applied to the features of each example.
        auto_shard: how TensorFlow shards a dataset; None uses the dataset's options.
        output: a folder for the rows, which all workers share; a new one, or that of the same
            prediction.
        format: of the files: "npz" (by default), "tfrecord" or "jsonl".
        batches_per_part: batches in each file; by default about a thousandth of the data.

    Returns:
        The model's outputs as arrays with one row per example, in the data's order (with
        ``auto_shard="file"``, in an order of TensorFlow's). With ``output``, the folder's path.

    Raises:
        BadInput: if arguments do not go together, or ``output`` has files of something else.
    """
    keras_methods.adapt()
    workers = workers_of(model.distribute_strategy)
    data = as_data(x, is_prediction=True)
    if output is not None:
        if callbacks is not None or auto_shard in ("file", "off"):
            raise BadInput(
                "output does not go with callbacks, nor with auto_shard=file or off: each worker "
                "computes parts of its own, and reads all of a dataset to find them"
            )
        folder = PredictionFolder(Path(output), format or "npz", workers)
        with contextlib.closing(folder):
            predict_into(
                folder,
                model,
                data,
                identity=lambda: {"weights_sha256": weights_sha256(model)},
                about={},
                batch_size=batch_size,
                steps=steps,
                preprocess=preprocess,
                batches_per_part=batches_per_part,
                shows_progress=verbose != 0,
            )
        return folder.path
    if format is not None or batches_per_part is not None:
        raise BadInput("format and batches_per_part are of files: they go with output")
    local_results = workers.strategy.experimental_local_results
    predict_batch = predict_step(model)
    if isinstance(data, Source):
        batches = pipeline.in_order(data, batch_size, workers, preprocess)
        steps = min(steps or batches.steps_per_epoch, batches.steps_per_epoch)
    else:
        batches = pipeline.for_evaluation(data, workers, steps, preprocess, auto_shard)
    build_by_call(model, batches.element_spec)
    hooks = callbacks_module.listed(callbacks, model, workers, verbose=verbose, steps=steps)
    observes = callbacks_module.observe_each_batch(hooks.callbacks, "predict")
    is_observed = bool(workers.gather(np.array([observes], np.int32)).any())
    iterator = batches.iterator()
    parts: list[Any] = []  # this worker's rows; if observed, or TensorFlow shards: all rows
    sizes, digest = [], 0  # of the global batches
    model.stop_predicting = False
    hooks.on_predict_begin()
    for step in range(steps) if steps is not None else itertools.count():
        batch = next(iterator, None)
        if batch is None:
            break
        hooks.on_predict_batch_begin(step)
        rows = predict_batch(batch, step)
        if isinstance(batch, ReplicaBatch):
            sizes.append(int(local_results(batch.total_examples)[0]))
            digest = int(local_results(batch.digest)[0])
            part = _concatenated(list(map(_as_arrays, local_results(rows))))
            if is_observed:
                part = _gathered(part, sizes[-1:], workers)
        else:  # TensorFlow shards, and no worker can tell which rows another one has
            part = _as_arrays(workers.strategy.gather(rows, axis=0))
        parts.append(part)
        SIGNS.give()
        hooks.on_predict_batch_end(step, {"outputs": part} if is_observed else None)
        if is_observed and workers.gather(np.array([model.stop_predicting], np.int32)).any():
            break
    if workers.count > 1 and bool(sizes) == bool(parts):  # of no batch at all, too
        pipeline.check_batches_are_alike(len(sizes), digest, workers)
    hooks.on_predict_end()
    if not parts:
        raise BadInput("the dataset is empty: it has to have at least one example")
    rows = _concatenated(parts)
    if sizes and not is_observed:
        rows = _gathered(rows, sizes, workers)
    workers.settle()
    return rows


def _as_arrays(rows: Any) -> Any:
    return tf.nest.map_structure(lambda leaf: leaf.numpy(), rows)


def _concatenated(parts: list[Any]) -> Any:
    return tf.nest.map_structure(lambda *leaves: np.concatenate(leaves), *parts)


def _gathered(rows: Any, sizes: list[int], workers: Workers) -> Any:
    """Returns the rows of all workers, in the data's order, on all of them.

    Args:
        rows: this worker's.
        sizes: examples of each global batch.
        workers: the workers.
    """
    if workers.count == 1:
        return rows
    places = [_places_of(worker, sizes, workers) for worker in range(workers.count)]

    def gathered(leaf: np.ndarray) -> np.ndarray:
        whole = np.empty((sum(sizes), *leaf.shape[1:]), leaf.dtype)
        for place, data in zip(places, workers.gather_bytes(leaf.tobytes()), strict=True):
            part = np.frombuffer(data, leaf.dtype)
            whole[place] = part.reshape(-1, *leaf.shape[1:])
        return whole

    return tf.nest.map_structure(gathered, rows)


def _places_of(worker: int, sizes: list[int], workers: Workers) -> np.ndarray:
    """Returns the places in the data of the rows of a worker: its slice of every global batch."""
    slices = []
    for first, size in zip(np.cumsum([0, *sizes]), sizes, strict=False):
        start, _ = bounds(size, worker * workers.local_replicas, workers.replicas)
        stop, _ = bounds(size, (worker + 1) * workers.local_replicas, workers.replicas)
        slices.append(np.arange(first + start, first + stop))
    return np.concatenate(slices)
