"""TFRecords: indexing, and reading in shuffled runs against reading in sequence, in rounds.

    python benchmarks/input_speed.py [rounds]

Writes files of small and of large records into a temporary folder, so that they are read from the
page cache. "In sequence" is plain tf.data, unshuffled, with the same ``parse``: what TensorFlow
does at best. Prints medians of the ratios first; with others at work on the cores, only they
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
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np
import tensorflow as tf

import tfdp
from tfdp.data import pipeline, record_index
from tfdp.data.order import Order
from tfdp.workers.collectives import workers_of

BATCH = 32
RUN_LENGTHS = (1, 4, 16, 64)
SIZES = {"1 KB": (1_000, 40_000), "100 KB": (100_000, 2_000)}  # bytes of a record, records
FILES = 4

alone = workers_of(tf.distribute.get_strategy())


def write(folder: Path, size_bytes: int, records: int) -> list[str]:
    rng = np.random.default_rng(0)
    paths = [str(folder / f"{file}.tfrecord") for file in range(FILES)]
    for path in paths:
        with tf.io.TFRecordWriter(path) as writer:
            for _ in range(records // FILES):
                writer.write(rng.bytes(size_bytes))
    return paths


def parse(record: tf.Tensor) -> tf.Tensor:
    return tf.reduce_sum(tf.cast(tf.io.decode_raw(record, tf.uint8), tf.int32))


def seconds(work: Callable[[], Any]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def in_sequence(paths: list[str]) -> Callable[[], None]:
    dataset = tf.data.TFRecordDataset(paths).map(parse, num_parallel_calls=tf.data.AUTOTUNE)
    iterator = iter(dataset.repeat().batch(BATCH).prefetch(tf.data.AUTOTUNE))
    return lambda: drain(iterator)


def in_runs(paths: list[str], run_length: int) -> Callable[[], None]:
    source = tfdp.from_tfrecords(paths, parse, run_length=run_length)
    order = Order(len(source), BATCH, run_length=run_length)
    iterator = pipeline.from_source(source, order, alone).iterator()
    return lambda: drain(iterator)


steps = 0  # batches in a round


def drain(iterator: Any) -> None:
    for _ in itertools.islice(iterator, steps):
        pass


def main(rounds: int) -> None:
    global steps
    for name, (size_bytes, records) in SIZES.items():
        steps = records // BATCH // 2
        with tempfile.TemporaryDirectory() as folder:
            paths = write(Path(folder), size_bytes, records)
            readers = {"in sequence": in_sequence(paths)}
            readers |= {f"runs of {n}": in_runs(paths, n) for n in RUN_LENGTHS}
            times: dict[str, list[float]] = {reader: [] for reader in readers}
            for _ in range(rounds + 1):
                for reader, read in readers.items():
                    times[reader].append(seconds(read))
            for reader, found in times.items():
                del found[0]  # AUTOTUNE was still at it
                ratios = [
                    one / other for one, other in zip(found, times["in sequence"], strict=True)
                ]
                per_s = steps * BATCH / statistics.median(found)
                print(
                    f"{name} {reader:12} {statistics.median(ratios):5.2f} times the time, "
                    f"{per_s:8.0f} records/s, {per_s * size_bytes / 1e6:6.0f} MB/s"
                )
            for what, check in (("headers only", False), ("payloads too", True)):
                scan = functools.partial(record_index.scan, paths, check)
                took = statistics.median(seconds(scan) for _ in range(rounds))
                print(
                    f"{name} indexing, {what}: {records / took:10.0f} records/s, "
                    f"{records * size_bytes / took / 1e6:8.0f} MB/s"
                )


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 5)
