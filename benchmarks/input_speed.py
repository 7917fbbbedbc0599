"""Speed of TFRecords: indexing, and shuffled runs of records against reading in sequence.

    python -m benchmarks.input_speed [rounds]

Writes files of small and of large records into a temporary folder; they are read from the page
cache. "In sequence" is plain tf.data, unshuffled, with the same ``parse``: the fastest way that
TensorFlow offers. Prints medians of the ratios first; with other work on the cores, only ratios
mean something.

2026-11-24, 2 cores shared with others, TensorFlow 2.21, 5 rounds; time over that in sequence:

    records of   runs of 1   of 4   of 16   of 64   indexing, headers only       payloads too
    1 KB              2.06   1.25    0.98    0.88   1,200,000/s (1.2 GB/s)       172,000/s
    100 KB            0.72   1.03    0.76    0.83      40,000/s (4.0 GB/s)        13,000/s
"""

from __future__ import annotations

import functools
import itertools
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np
import tensorflow as tf

import tfdp
from benchmarks import measuring
from tfdp.data import pipeline, record_index
from tfdp.data.order import Order
from tfdp.workers.collectives import workers_of

BATCH = 32
RUN_LENGTHS = (1, 4, 16, 64)  # consecutive records that are shuffled as one
SIZES = {"1 KB": (1_000, 40_000), "100 KB": (100_000, 2_000)}  # bytes of a record, records
FILES = 4
IN_SEQUENCE = "in sequence"


def write(folder: Path, record_bytes: int, records: int) -> list[str]:
    rng = np.random.default_rng(0)
    paths = [str(folder / f"{file}.tfrecord") for file in range(FILES)]
    for path in paths:
        with tf.io.TFRecordWriter(path) as writer:
            for _ in range(records // FILES):
                writer.write(rng.bytes(record_bytes))
    return paths


def parse(record: tf.Tensor) -> tf.Tensor:
    return tf.reduce_sum(tf.cast(tf.io.decode_raw(record, tf.uint8), tf.int32))


def seconds(work: Callable[[], Any]) -> float:
    began_s = time.perf_counter()
    work()
    return time.perf_counter() - began_s


def in_sequence(paths: list[str]) -> Iterator[Any]:
    dataset = tf.data.TFRecordDataset(paths).map(parse, num_parallel_calls=tf.data.AUTOTUNE)
    return iter(dataset.repeat().batch(BATCH).prefetch(tf.data.AUTOTUNE))


def in_runs(paths: list[str], run_length: int) -> Iterator[Any]:
    source = tfdp.from_tfrecords(paths, parse, run_length=run_length)
    order = Order(len(source), BATCH, run_length=run_length)
    one_worker = workers_of(tf.distribute.get_strategy())
    return pipeline.from_source(source, order, one_worker).iterator()


def drain(iterator: Iterator[Any], batches: int) -> None:
    for _ in itertools.islice(iterator, batches):
        pass


def compare_reading(
    name: str, paths: list[str], record_bytes: int, batches: int, rounds: int
) -> None:
    """Reads in every way in turns; prints time over that in sequence, and speed."""
    iterators = {IN_SEQUENCE: in_sequence(paths)}
    iterators |= {f"runs of {length}": in_runs(paths, length) for length in RUN_LENGTHS}
    times_s: dict[str, list[float]] = {way: [] for way in iterators}
    for _ in range(rounds + 1):
        for way, iterator in iterators.items():
            times_s[way].append(seconds(functools.partial(drain, iterator, batches)))
    for of_way in times_s.values():
        del of_way[0]  # AUTOTUNE was not done yet
    for way, of_way in times_s.items():
        ratio = measuring.ratios(of_way, times_s[IN_SEQUENCE]).median
        records_per_s = batches * BATCH / statistics.median(of_way)
        print(
            f"{name} {way:12} {ratio:5.2f} times the time, {records_per_s:8.0f} records/s, "
            f"{records_per_s * record_bytes / 1e6:6.0f} MB/s"
        )


def measure_indexing(
    name: str, paths: list[str], record_bytes: int, records: int, rounds: int
) -> None:
    """Prints how fast an index of the files is made, without and with checks of payloads."""
    for title, check_payloads in (("headers only", False), ("payloads too", True)):
        scan = functools.partial(record_index.scan, paths, check_payloads)
        median_s = statistics.median(seconds(scan) for _ in range(rounds))
        print(
            f"{name} indexing, {title}: {records / median_s:10.0f} records/s, "
            f"{records * record_bytes / median_s / 1e6:8.0f} MB/s"
        )


def main() -> None:
    rounds = measuring.rounds_argument(__doc__, default=5)
    for name, (record_bytes, records) in SIZES.items():
        with tempfile.TemporaryDirectory() as folder:
            paths = write(Path(folder), record_bytes, records)
            compare_reading(name, paths, record_bytes, records // BATCH // 2, rounds)
            measure_indexing(name, paths, record_bytes, records, rounds)


if __name__ == "__main__":
    main()
