"""Prediction into a folder: each worker computes its own parts of the data, without the others.

A part is a fixed run of batches, so neither the number of workers nor a restart changes any part.
Workers meet before the first part and after the last one.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfdp.data import own_batches, pipeline
from tfdp.data.batch_digest import same_examples
from tfdp.data.own_batches import WholeBatch
from tfdp.data.preprocessing import Preprocess
from tfdp.data.sources import Source, data_sha256
from tfdp.errors import BadInput, reason_of
from tfdp.log import say, say_on_chief
from tfdp.outputs import by_name
from tfdp.provenance import package_versions
from tfdp.step.building import build_by_call
from tfdp.step.eval_step import PredictStep
from tfdp.trainer import keras_methods
from tfdp.trainer.prediction_files import as_array, check_can_hold
from tfdp.trainer.prediction_folder import PredictionFolder
from tfdp.trainer.prediction_progress import Progress
from tfdp.whereabouts import SIGNS, marked
from tfdp.workers.collectives import Workers, workers_of

_DEFAULT_PARTS = 1024  # about; parts should be small enough to divide them, and to lose one
_MOST_BATCHES = 1024  # of a part, by default
_BATCHES_IF_UNKNOWN = 64  # of a part, by default, of data of unknown length


@marked("a prediction")
def predict_into(
    folder: PredictionFolder,
    model: keras.Model,
    data: Source | tf.data.Dataset,
    *,
    identity: Callable[[], Mapping[str, Any]],
    about: Mapping[str, Any],
    batch_size: int | None = None,
    steps: int | None = None,
    preprocess: Preprocess | None = None,
    batches_per_part: int | None = None,
    shows_progress: bool = True,
) -> None:
    """Predicts all data by all workers; what is in the folder already is not computed again.

    Args:
        folder: the folder for the predictions.
        model: a model that was built in the strategy's scope.
        data: a source or a batched dataset.
        identity: returns values by which models differ, as JSON has them; called on the chief.
        about: further values for ``predictions.json``.
        batch_size: rows of a batch of a source, which one worker computes; 32 by default.
        steps: batches to predict; all by default.
        preprocess: applied to the features of each example.
        batches_per_part: batches of a part; by default about a thousandth of the data.
        shows_progress: whether the chief says how far all workers are, and when they are done.

    Raises:
        BadInput: before the first part, on all workers, if something would fail later.
        TrainingError: if a part can't be written.
    """
    keras_methods.adapt()
    workers = workers_of(model.distribute_strategy)
    size = batch_size or 32
    batches = _count(data, size, steps, workers)
    if not isinstance(data, Source) and steps is not None:
        data = data.take(steps)
    per_part = batches_per_part or _default_batches_per_part(batches)
    plan = _Plan(workers, per_part, frozenset(folder.parts()), batches)
    elements, sample, spec = _read(data, size, plan, preprocess)
    step, outputs = _prepared(model, sample, spec, workers)
    check_can_hold(outputs, folder.format)
    described = {
        name: {"shape": list(output.shape[1:]), "dtype": output.dtype.name}
        for name, output in outputs.items()
    }

    @functools.cache
    def whole_identity() -> dict[str, Any]:
        own = {"digest_of_first_batch": int(same_examples(int(sample.digest)))}
        if isinstance(data, Source):
            own = {"examples": len(data)}
        return {
            "format": folder.format,
            "batch_size": size if isinstance(data, Source) else int(sample.rows),
            "batches_per_part": per_part,
            "batches": batches,
            "outputs": described,
            "data_sha256": data_sha256(data),
            **own,
            **identity(),
        }

    summary = folder.agree(whole_identity)
    if summary is not None:
        if shows_progress:
            described_rows = _described(summary["rows"], summary["parts"])
            say_on_chief(f"{folder.path} is finished: {described_rows}")
        workers.settle()
        return
    progress = None
    if workers.is_chief and shows_progress:
        rows = len(data) if isinstance(data, Source) and steps is None else None
        progress = Progress(folder, per_part * size, rows)
    read = _predict_parts(model, folder, elements, plan, step, progress)
    if isinstance(data, Source):
        assert batches is not None
        read = _Read(batches, min(batches * size, len(data)), 0)
    try:  # it is also where workers wait for each other
        pipeline.check_batches_are_alike(read.batches, read.digest, workers)
    except BadInput:
        if workers.is_chief:
            folder.disown()
        raise

    def finish() -> None:
        parts = plan.part_of(read.batches - 1) + 1
        of_data = {"rows": read.rows, "parts": parts, "workers": workers.count}
        folder.finish(parts, {**whole_identity(), **of_data, **about, **package_versions()})
        if shows_progress:
            say(f"finished: {_described(read.rows, parts)} in {folder.path}")

    workers.run_on_chief(finish)
    workers.settle()


def _described(rows: int, parts: int) -> str:
    return f"{rows:,} rows in {f'{parts:,} parts' if parts > 1 else 'one part'}"


@dataclasses.dataclass(frozen=True)
class _Plan:
    """Who computes which batches.

    Args:
        workers: the workers.
        batches_per_part: batches of a part.
        finished: numbers of parts that are there already.
        batches: number of batches in the data; None if that is unknown.
    """

    workers: Workers
    batches_per_part: int
    finished: frozenset[int]
    batches: int | None

    def part_of(self, batch: int) -> int:
        """Returns the number of the part that a batch belongs to."""
        return batch // self.batches_per_part

    def is_own(self, batch: int) -> bool:
        """Returns whether this worker has to compute a batch."""
        part = self.part_of(batch)
        return part % self.workers.count == self.workers.index and part not in self.finished

    def is_own_in_graph(self, batch: tf.Tensor) -> tf.Tensor:
        """As ``is_own``, in a graph."""
        part = batch // self.batches_per_part
        known = max(self.finished, default=-1) + 2
        is_finished = tf.constant([number in self.finished for number in range(known)])
        is_of_worker = part % self.workers.count == self.workers.index
        return is_of_worker & ~tf.gather(is_finished, tf.minimum(part, known - 1))

    def own_ranges(self) -> list[tuple[int, int]]:
        """Returns the ranges of batches that this worker has to compute, one for each part."""
        assert self.batches is not None
        starts = range(0, self.batches, self.batches_per_part)
        ends = (min(start + self.batches_per_part, self.batches) for start in starts)
        return [pair for pair in zip(starts, ends, strict=True) if self.is_own(pair[0])]


@dataclasses.dataclass
class _Read:
    """What a worker has read of the data, whoever computed it.

    Args:
        batches: number of batches.
        rows: number of rows.
        digest: digest of the batches.
    """

    batches: int = 0
    rows: int = 0
    digest: int = 0


def _count(
    data: Source | tf.data.Dataset, batch_size: int, steps: int | None, workers: Workers
) -> int | None:
    """Returns the number of batches to predict, None if that is unknown; checks the data."""
    if isinstance(data, Source):
        pipeline.check_sources_are_alike(data, workers)
        if not len(data):
            raise BadInput("the source is empty: it has to have at least one example")
        batches = -(-len(data) // batch_size)
    else:
        pipeline.check_ends(data, steps)
        own_batches.check_order_is_fixed(data)
        say_on_chief(
            "the data to predict is a tf.data.Dataset: each worker reads all of it, and it has to "
            "give the same rows in the same order each time (of a tfdp.Source, a worker reads its "
            "own rows only)"
        )
        batches = int(data.cardinality())
        if batches < 0:
            return steps if batches == tf.data.INFINITE_CARDINALITY else None
    return batches if steps is None else min(steps, batches)


def _default_batches_per_part(batches: int | None) -> int:
    if batches is None:
        return _BATCHES_IF_UNKNOWN
    return max(1, min(-(-batches // _DEFAULT_PARTS), _MOST_BATCHES))


def _read(
    data: Source | tf.data.Dataset, batch_size: int, plan: _Plan, preprocess: Preprocess | None
) -> tuple[Iterator[WholeBatch], WholeBatch, Any]:
    """Returns the batches to go through, one with a row at least, and the spec of a share."""
    replicas = plan.workers.local_replicas
    if isinstance(data, Source):
        one = own_batches.of_source(data, 1, [(0, 1)], replicas, preprocess)
        batches = own_batches.of_source(data, batch_size, plan.own_ranges(), replicas, preprocess)
        return iter(batches), next(iter(one)), batches.element_spec.shares[0]
    batches = own_batches.of_dataset(data, plan.is_own_in_graph, replicas, preprocess)
    elements = iter(batches)
    first = next(elements, None)
    if first is None:
        raise BadInput("the dataset is empty: it has to have at least one example")
    pipeline.check_batches_are_alike(1, int(first.digest), plan.workers)
    return itertools.chain([first], elements), first, batches.element_spec.shares[0]


def _prepared(
    model: keras.Model, sample: WholeBatch, spec: Any, workers: Workers
) -> tuple[PredictStep, dict[str, Any]]:
    """Builds and traces a model; returns its step, and its outputs by name; a collective.

    Raises:
        BadInput: if the model does not take the data, or replicas exchange something.
    """
    step = PredictStep(model, workers.local_replicas)
    try:
        build_by_call(model, spec.data)
        is_graph = workers.local_replicas == 1 and not model.run_eagerly
        outputs, exchanges = step.described(spec if is_graph else _on_replicas(sample, workers))
    except (TypeError, ValueError, RuntimeError, tf.errors.OpError) as error:
        raise BadInput(
            f"the model does not take the batches to predict, {spec.data}: {reason_of(error)}"
        ) from error
    if exchanges and workers.count > 1:
        workers.settle()
        raise BadInput(
            "the model's replicas exchange something in predict_step, so no worker can predict "
            "rows by itself: predict in memory (tfdp.predict without output), by one worker, or "
            "leave the exchange out"
        )
    return step, by_name(model, outputs)


def _predict_parts(
    model: keras.Model,
    folder: PredictionFolder,
    elements: Iterator[WholeBatch],
    plan: _Plan,
    step: PredictStep,
    progress: Progress | None,
) -> _Read:
    """Predicts and writes this worker's parts; returns what it has read."""
    read = _Read()
    for first in elements:
        if not plan.is_own(int(first.number)):
            _note(read, first)
            continue
        rows_in_part = 0
        with folder.part(plan.part_of(int(first.number))) as writer:
            for batch in _batches_of_part(first, elements, plan):
                _note(read, batch)
                rows = step(_on_replicas(batch, plan.workers), int(batch.number))
                writer.write(_arrays(model, rows, plan.workers))
                rows_in_part += int(batch.rows)
                if progress is not None:
                    progress.show(rows_in_part)
    if progress is not None:
        progress.close()
    return read


def _batches_of_part(
    first: WholeBatch, elements: Iterator[WholeBatch], plan: _Plan
) -> Iterator[WholeBatch]:
    """Gives the batches of a part, and waits for none of the next part."""
    yield first
    number = int(first.number) + 1
    while plan.part_of(number) == plan.part_of(number - 1):
        batch = next(elements, None)
        if batch is None:
            return
        yield batch
        number += 1


def _note(read: _Read, batch: WholeBatch) -> None:
    read.batches = int(batch.number) + 1
    read.rows += int(batch.rows)
    read.digest = int(batch.digest)
    SIGNS.give()


def _on_replicas(batch: WholeBatch, workers: Workers) -> Any:
    """Returns a batch as the step takes it: a share, or one on each of this worker's replicas."""
    if workers.local_replicas == 1:
        return batch.shares[0]
    return workers.strategy.experimental_distribute_values_from_function(
        lambda context: batch.shares[context.replica_id_in_sync_group % workers.local_replicas]
    )


def _arrays(model: keras.Model, rows: Any, workers: Workers) -> dict[str, np.ndarray]:
    """Returns the rows of this worker's replicas, in order, by the names of the outputs."""
    of_replicas = workers.strategy.experimental_local_results(rows)
    named = [by_name(model, tf.nest.map_structure(as_array, each)) for each in of_replicas]
    if len(named) == 1:
        return named[0]
    return {name: np.concatenate([each[name] for each in named]) for name in named[0]}
