"""Which examples make global batch k, read from real files, for any number of workers."""

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
    """One of several workers, without the others: reading needs no exchange."""
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
    """The global batch at each step, from all workers' streams."""
    streams = [
        pipeline.from_source(
            source, order_of(source, batch_size), one_of(workers, index), first_step=first_step
        ).iterator()
        for index in range(workers)
    ]
    batches = []
    for _ in range(steps):
        own = [next(stream) for stream in streams]
        shares = [tuple(leaf.numpy()[: each.examples] for leaf in each.data) for each in own]
        sizes = [len(numbers) for numbers, _ in shares]
        assert max(sizes) - min(sizes) <= 1
        numbers = np.concatenate([numbers for numbers, _ in shares]).tolist()
        records = np.concatenate([records for _, records in shares]).tolist()
        assert records == [payload(number) for number in numbers]
        batches.append(numbers)
    return batches


UNEVEN, SINGLE_RECORDS = (1, 0, 13, 2, 7), (1,) * 23  # records of each file


@pytest.mark.parametrize(
    ("shards", "run_length", "batch_size", "workers"),
    [
        (UNEVEN, 4, 7, 3),
        (UNEVEN, 16, 5, 2),  # runs longer than a batch
        (SINGLE_RECORDS, 4, 2, 4),  # fewer examples than workers
    ],
)
def test_a_global_batch_is_the_same_for_any_number_of_workers(
    shards: tuple[int, ...], run_length: int, batch_size: int, workers: int, tmp_path: Path
) -> None:
    write(tmp_path, shards)
    source = tfdp.from_tfrecords(f"{tmp_path}/*", parse, run_length=run_length)
    steps = -(-23 // batch_size)
    alone = global_batches(source, batch_size, 1, 0, 2 * steps)
    epochs = alone[:steps], alone[steps:]
    for epoch in epochs:
        assert sorted(itertools.chain(*epoch)) == list(range(23))
        assert {len(batch) for batch in epoch[:-1]} <= {batch_size}
    assert epochs[0] != epochs[1]
    first_step = (steps + 1) // 2  # in the middle of the first epoch
    resumed = global_batches(source, batch_size, workers, first_step, 2 * steps - first_step)
    assert resumed == alone[first_step:]


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
    """Records which examples are read, a list for each call."""

    def __init__(self) -> None:
        self.calls: list[list[int]] = []
        self.preprocessed = 0
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return 4096

    def read(self, indices: tf.Tensor) -> Any:
        def record(indices: np.ndarray) -> np.ndarray:
            with self._lock:
                self.calls.append(indices.tolist())
            return indices

        return (tf.ensure_shape(tf.numpy_function(record, [indices], tf.int64), [None]),)

    def preprocess(self, features: tf.Tensor, training: bool, seed: tf.Tensor) -> tf.Tensor:
        def count(index: np.ndarray) -> np.ndarray:
            with self._lock:
                self.preprocessed += 1
            return index

        return tf.ensure_shape(tf.numpy_function(count, [features], tf.int64), [])


def test_a_worker_reads_and_preprocesses_only_its_own_share() -> None:
    workers, steps, batch_size = 4, 32, 16  # an eighth of the epoch; the rest may be read ahead
    share = batch_size // workers
    for index in (0, workers - 1):
        source = Counted()
        batches = pipeline.from_source(
            source,
            order_of(source, batch_size),
            one_of(workers, index),
            preprocess=source.preprocess,
        )
        iterator = batches.iterator()
        used = [next(iterator).data.numpy().tolist() for _ in range(steps)]
        del iterator  # stops reading ahead
        calls = list(source.calls)
        assert {len(call) for call in calls} == {share}
        assert all(indices in calls for indices in used)
        read = list(itertools.chain(*calls))
        assert len(set(read)) == len(read) <= len(source) // workers
        assert steps * share <= source.preprocessed <= len(source.calls) * share


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
