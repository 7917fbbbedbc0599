"""Which examples make global batch k, as they come out of real files, for any number of workers."""

from __future__ import annotations

import itertools
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfdp
from tests.tfdp.records import parse, payload, write
from tfdp.data import pipeline
from tfdp.data.order import Order

SEED = 9


def one_of(workers: int, index: int) -> Any:
    """The workers as one of them sees them, without the others: reading needs none."""
    return SimpleNamespace(
        count=workers,
        index=index,
        replicas=workers,
        local_replicas=1,
        strategy=None,
        gather=lambda row: np.stack([row] * workers),
    )


def order_of(source: tfdp.Source, batch_size: int) -> Order:
    return Order(len(source), batch_size, SEED, run_length=source.run_length)


def global_batches(
    source: tfdp.Source, batch_size: int, workers: int, first_step: int, steps: int
) -> list[list[int]]:
    """What all workers together have at each step."""
    streams = [
        pipeline.from_source(
            source, order_of(source, batch_size), one_of(workers, index), first_step=first_step
        ).iterator()
        for index in range(workers)
    ]
    batches = []
    for _ in range(steps):
        parts = [tuple(leaf.numpy() for leaf in next(stream)) for stream in streams]
        sizes = [len(numbers) for numbers, _ in parts]
        assert max(sizes) - min(sizes) <= 1
        numbers = np.concatenate([numbers for numbers, _ in parts]).tolist()
        records = np.concatenate([records for _, records in parts]).tolist()
        assert records == [payload(number) for number in numbers]
        batches.append(numbers)
    return batches


SHARDS: dict[str, tuple[int, ...]] = {
    "one": (23,),
    "uneven": (1, 0, 13, 2, 7),
    "single records": (1,) * 23,
}


@pytest.mark.parametrize(
    ("shards", "run_length", "batch_size", "resumed_by"),
    [
        ("one", 1, 5, [2]),
        ("uneven", 4, 7, [2, 3, 4]),  # not divisible by the workers
        ("uneven", 16, 5, [3]),  # runs longer than a batch
        ("uneven", 100, 8, [2]),  # one run
        ("single records", 3, 64, [2]),  # all in a batch
        ("single records", 4, 2, [4]),  # fewer examples than workers
    ],
)
def test_a_global_batch_is_the_same_for_any_number_of_workers(
    shards: str, run_length: int, batch_size: int, resumed_by: list[int], tmp_path: Path
) -> None:
    write(tmp_path, SHARDS[shards])
    source = tfdp.from_tfrecords(f"{tmp_path}/*", parse, run_length=run_length)
    per_epoch = -(-23 // batch_size)
    alone = global_batches(source, batch_size, 1, 0, 2 * per_epoch)
    epochs = alone[:per_epoch], alone[per_epoch:]
    for epoch in epochs:
        assert sorted(itertools.chain(*epoch)) == list(range(23))
        assert {len(batch) for batch in epoch[:-1]} <= {batch_size}
    if run_length < 23:
        assert epochs[0] != epochs[1]
    for workers in resumed_by:
        done = 0 if workers == 2 else (per_epoch + 1) // 2  # in the middle of the first epoch
        resumed = global_batches(source, batch_size, workers, done, 2 * per_epoch - done)
        assert resumed == alone[done:]


def test_arrays_files_and_records_have_one_order(tmp_path: Path) -> None:
    paths = write(tmp_path / "records", (1,) * 23)
    files = [tmp_path / f"{number}.txt" for number in range(23)]
    for number, path in enumerate(files):
        path.write_bytes(payload(number))
    labels = [payload(number) for number in range(23)]

    def load(path: tf.Tensor) -> tf.Tensor:
        return parse(tf.io.read_file(path))[0]

    orders = [
        global_batches(source, 6, 1, 0, 8)
        for source in (
            tfdp.from_arrays(np.arange(23), labels),
            tfdp.from_files(files, labels, load),
            tfdp.from_tfrecords(paths, parse, run_length=1),
        )
    ]
    assert orders[0] == orders[1] == orders[2]


class Counted(tfdp.Source):
    """Notes which examples are read, a list for each call."""

    def __init__(self) -> None:
        self.calls: list[list[int]] = []
        self.preprocessed = 0
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return 4096

    def read(self, indices: tf.Tensor) -> Any:
        def note(places: np.ndarray) -> np.ndarray:
            with self._lock:
                self.calls.append(places.tolist())
            return places

        return (tf.ensure_shape(tf.numpy_function(note, [indices], tf.int64), [None]),)

    def preprocess(self, features: tf.Tensor, training: bool, seed: tf.Tensor) -> tf.Tensor:
        def note(place: np.ndarray) -> np.ndarray:
            with self._lock:
                self.preprocessed += 1
            return place

        return tf.ensure_shape(tf.numpy_function(note, [features], tf.int64), [])


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_a_workers_work_for_an_example_does_not_grow_with_the_workers(workers: int) -> None:
    steps, batch_size = 64, 16  # a quarter of the epoch, so that what is read ahead is in it too
    mine = batch_size // workers
    for index in range(workers):
        source = Counted()
        batches = pipeline.from_source(
            source,
            order_of(source, batch_size),
            one_of(workers, index),
            preprocess=source.preprocess,
        )
        iterator = batches.iterator()
        used = [next(iterator)[0].numpy().tolist() for _ in range(steps)]
        del iterator  # stops reading ahead
        calls = list(source.calls)
        assert {len(call) for call in calls} == {mine}
        assert all(each in calls for each in used)
        read = list(itertools.chain(*calls))
        assert len(set(read)) == len(read) <= len(source) // workers
        assert steps * mine <= source.preprocessed <= len(source.calls) * mine


def test_mixing_is_a_matter_of_the_run_length() -> None:
    def neighbours(run_length: int) -> int:
        """How many examples of a global batch come right behind the one before them."""
        order = Order(120, 30, SEED, run_length=run_length)
        batches = [order.slice(np.int64(step), np.int64(0), 1)[1].numpy() for step in range(4)]
        return sum(int((np.diff(batch) == 1).sum()) for batch in batches)

    assert neighbours(1) < 10
    assert neighbours(5) in range(90, 110)  # four of five
    assert neighbours(30) >= 110


def test_fit_shuffles_a_source_by_its_runs() -> None:
    class Runs(Counted):
        @property
        def run_length(self) -> int:
            return 8

        def read(self, indices: tf.Tensor) -> Any:
            (numbers,) = super().read(indices)
            floats = tf.cast(numbers, tf.float32)[:, tf.newaxis]
            return floats, floats

    source = Runs()
    model = keras.Sequential([keras.layers.Input((1,)), keras.layers.Dense(1)])
    model.compile(keras.optimizers.SGD(0.0), "mse")
    tfdp.fit(model, source, batch_size=16, steps_per_epoch=4, verbose=0)
    calls = [call for call in source.calls if len(call) == 16]
    assert len(calls) >= 4
    for call in calls:
        for run in (call[:8], call[8:]):
            assert run == list(range(run[0], run[0] + 8))
            assert run[0] % 8 == 0
    assert any(call[8] != call[7] + 1 for call in calls)
