"""A recipe that is over in a moment: 200 random examples, a small net with dropout.

Variables of the environment make it misbehave, or wait for a test:

- ``HOLD=path:count`` reads ``count`` batches for training and no more while the file at ``path``
  exists; ``HOLD_EVAL`` likewise for evaluation.
- ``HOLD_BUILD=path`` waits in build_model while the file at ``path`` exists.
- ``FAULT=place:index`` lets that worker fail in build_model, in train_data (wrong input), or in
  "read", an op that reads a batch.
- ``MARKS=folder`` touches a file there, "build", "train" or "eval", when a model is built and at
  every batch; ``PACE_S`` makes batches slow, until the file ``FAST`` is there.
- ``CSV=path`` is where a callback writes; ``CALLBACKS=none`` leaves all of them out, and with them
  the evaluation at the end of an epoch.
"""

from __future__ import annotations

import dataclasses
import os
import threading
import time
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

import tfdp
from cluster.spec import from_environment

EXAMPLES = 200


@dataclasses.dataclass(frozen=True)
class HParams:
    data: str = "source"
    units: int = 4
    dropout: float = 0.3
    learning_rate: float = 0.01


def build_model(hparams: HParams) -> keras.Model:
    if fails("build_model"):
        raise ZeroDivisionError("this worker can't build")
    mark("build")
    hold = os.environ.get("HOLD_BUILD")
    while hold and Path(hold).exists():
        time.sleep(0.01)
    model = keras.Sequential(
        [
            keras.layers.Input((6,)),
            keras.layers.Dense(16, activation="relu"),
            keras.layers.Dropout(hparams.dropout),
            keras.layers.Dense(hparams.units),
        ]
    )
    model.compile(keras.optimizers.Adam(hparams.learning_rate), "mse", metrics=["mae"])
    return model


def train_data(hparams: HParams) -> Any:
    source = tfdp.from_arrays(*examples(EXAMPLES, hparams.units, seed=1))
    if hparams.data == "dataset":
        numbers = tf.data.Dataset.range(EXAMPLES)
        return numbers.map(lambda i: tuple(leaf[0] for leaf in source.read(i[tf.newaxis])))
    if fails("train_data"):
        raise tfdp.BadInput("this worker has no data: give it some")
    return Watched(source, "train", os.environ.get("HOLD"))


def eval_data(hparams: HParams) -> tfdp.Source:
    source = tfdp.from_arrays(*examples(33, hparams.units, seed=2))
    return Watched(source, "eval", os.environ.get("HOLD_EVAL"))


if os.environ.get("CALLBACKS") != "none":

    def callbacks(hparams: HParams) -> list[keras.callbacks.Callback]:
        return [
            keras.callbacks.LearningRateScheduler(lambda epoch, rate: rate * 0.9),
            keras.callbacks.ReduceLROnPlateau("val_loss", patience=1, min_delta=0.1),
            *([keras.callbacks.CSVLogger(os.environ["CSV"])] if "CSV" in os.environ else []),
        ]


def preprocess(features: tf.Tensor, training: bool, seed: tf.Tensor) -> tf.Tensor:
    noise = 0.1 * tf.random.stateless_normal([6], seed) if training else 0.0
    return tf.cast(features, tf.float32) / 100.0 + noise


def examples(count: int, units: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Raw features (int32[count, 6]) and labels (float32[count, units])."""
    rng = np.random.default_rng(seed)
    features = rng.integers(-100, 100, (count, 6), np.int32)
    return features, rng.normal(size=(count, units)).astype(np.float32)


def fails(place: str) -> bool:
    """Whether this worker is to fail there."""
    cluster = from_environment()
    return cluster is not None and os.environ.get("FAULT") == f"{place}:{cluster.index}"


def mark(name: str) -> None:
    """Tells a test what this worker does."""
    if "MARKS" in os.environ:
        (Path(os.environ["MARKS"]) / name).touch()


class Watched(tfdp.Source):
    """A source that tells when it is read, and stops in the middle for as long as a test wants."""

    def __init__(self, source: tfdp.Source, name: str, hold: str | None) -> None:
        self._source, self._name = source, name
        path, _, count = (hold or "").partition(":")
        self._hold = Path(path) if path else None
        self._left = int(count or 3)
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._source)

    def read(self, indices: tf.Tensor) -> Any:
        if self._hold is None and not {"FAULT", "MARKS", "PACE_S"} & set(os.environ):
            return self._source.read(indices)
        with tf.control_dependencies([tf.numpy_function(self._wait, [], tf.int64)]):
            return self._source.read(tf.identity(indices))

    def _wait(self) -> np.ndarray:
        with self._lock:
            mark(self._name)
            if not os.path.exists(os.environ.get("FAST", "")):  # noqa: PTH110
                time.sleep(float(os.environ.get("PACE_S", 0)))
            self._left -= 1
            if self._left < 0 and fails("read"):
                raise OverflowError("this worker can't read")
            while self._left < 0 and self._hold is not None and self._hold.exists():
                time.sleep(0.01)
        return np.int64(0)
