"""A recipe on TFRecord files that logs the examples of each batch, or on a plain dataset."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

import tfdp


@dataclasses.dataclass(frozen=True)
class HParams:
    pattern: str = ""
    log: str = ""
    run_length: int = 5
    is_plain: bool = False


def build_model(hparams: HParams) -> keras.Model:
    model = keras.Sequential([keras.layers.Input((1,)), keras.layers.Dense(1)])
    model.compile(keras.optimizers.SGD(1e-4), "mse")
    return model


def parse(record: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    number = tf.reshape(tf.strings.to_number(tf.strings.split(record, " ")[0]), [1])
    return number, number


def train_data(hparams: HParams) -> tfdp.Source | tf.data.Dataset:
    if hparams.is_plain:
        return tf.data.TFRecordDataset(sorted(tf.io.gfile.glob(hparams.pattern))).map(parse)
    records = tfdp.from_tfrecords(hparams.pattern, parse, run_length=hparams.run_length)
    return Logged(records, Path(hparams.log))


class Logged(tfdp.Source):
    def __init__(self, source: tfdp.Source, log: Path) -> None:
        self._source, self._log = source, log

    def __len__(self) -> int:
        return len(self._source)

    @property
    def run_length(self) -> int:
        return self._source.run_length

    def read(self, indices: tf.Tensor) -> Any:
        with tf.control_dependencies([tf.numpy_function(self._note, [indices], tf.int64)]):
            return self._source.read(tf.identity(indices))

    def _note(self, indices: np.ndarray) -> np.ndarray:
        with self._log.open("a") as log:
            log.write(f"{indices.tolist()}\n")
        return np.int64(0)
