"""TFRecord files for tests: record i contains its number, padded to a length that varies."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import tensorflow as tf


def payload(number: int) -> bytes:
    return b"%d " % number + b"." * (number * 37 % 101)


def write(folder: Path, counts: Sequence[int]) -> list[Path]:
    """Writes a file for each count; records are numbered consecutively over all files."""
    folder.mkdir(parents=True, exist_ok=True)
    paths, number = [], 0
    for file, count in enumerate(counts):
        paths.append(folder / f"part-{file:03}.tfrecord")
        with tf.io.TFRecordWriter(str(paths[-1])) as writer:
            for _ in range(count):
                writer.write(payload(number))
                number += 1
    return paths


def parse(record: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns the number as the features, and the whole record as the label."""
    return tf.strings.to_number(tf.strings.split(record, " ")[0], tf.int64), record


def offset(number: int) -> int:
    """Returns the byte at which a record begins in a file that begins with record 0."""
    return sum(12 + len(payload(before)) + 4 for before in range(number))


def damage(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)
