"""A recipe for batch prediction: 103 rows without labels, three outputs of different kinds.

Variables of the environment:

- ``READS=file`` gets a line for each batch that is read: the first row's index.
- ``HOLD=path:index`` waits before it reads that row, or a later one, while the file at ``path``
  exists.
"""

from __future__ import annotations

import dataclasses
import os
import time
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

import tfdp

ROWS = 103


@dataclasses.dataclass(frozen=True)
class HParams:
    data: str = "source"
    rows: int = ROWS


def build_model(hparams: HParams) -> keras.Model:
    inputs = keras.Input((6,))
    hidden = keras.layers.Dense(16, activation="relu")(inputs)
    scores = keras.layers.Dense(3, name="scores")(keras.layers.BatchNormalization()(hidden))
    outputs = {
        "scores": scores,
        "best": keras.ops.argmax(scores, axis=-1),
        "more": {"square": keras.layers.Reshape((2, 2))(keras.layers.Dense(4)(hidden))},
    }
    model = keras.Model(inputs, outputs)
    model.compile("adam", {"scores": "mse", "best": None, "more": {"square": None}})
    return model


def train_data(hparams: HParams) -> tfdp.Source:
    labels = np.random.default_rng(2).normal(size=(ROWS, 3)).astype(np.float32)
    return tfdp.from_arrays(features(ROWS), {"scores": labels})


def predict_data(hparams: HParams) -> Any:
    source = Watched(tfdp.from_arrays(features(hparams.rows)))
    if hparams.data == "source":
        return source
    dataset = tf.data.Dataset.range(hparams.rows)
    if hparams.data == "shuffled":
        dataset = dataset.shuffle(10, seed=1)
    return dataset.map(lambda i: source.read(i[tf.newaxis])[0][0]).filter(lambda row: True)


def preprocess(row: tf.Tensor, training: bool, seed: tf.Tensor) -> tf.Tensor:
    noise = tf.random.stateless_normal([6], seed) if training else 0.0
    return tf.cast(row, tf.float32) / 100.0 + noise


def features(rows: int) -> np.ndarray:
    return np.random.default_rng(1).integers(-100, 100, (rows, 6), np.int32)


class Watched(tfdp.Source):
    """A source that notes what is read, and waits for a test."""

    def __init__(self, source: tfdp.Source) -> None:
        self._source = source

    def __len__(self) -> int:
        return len(self._source)

    def read(self, indices: tf.Tensor) -> Any:
        with tf.control_dependencies([tf.numpy_function(_noted, [indices], tf.int64)]):
            return self._source.read(tf.identity(indices))


def _noted(indices: np.ndarray) -> np.ndarray:
    if "READS" in os.environ and len(indices) > 1:  # not the one row that tells the shapes
        with Path(os.environ["READS"]).open("a") as file:
            file.write(f"{indices[0]}\n")
    path, _, index = os.environ.get("HOLD", "").partition(":")
    while path and indices[0] >= int(index) and Path(path).exists():
        time.sleep(0.01)
    return np.int64(0)
