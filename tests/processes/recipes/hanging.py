"""The recipe ``small.py``, of which one worker stands still once, in the middle of training.

``HANG=kind:index:path`` names the way, the worker, and a file that exists once it has happened:

- ``input``: a read of the source does not return;
- ``callback``: a callback does not return;
- ``step``: a Python function that the model calls does not return;
- ``lock``: a callback calls a library that does not return, and holds Python's lock;
- ``slow``: a callback takes longer than a step may take, but not longer than a callback may take.

The automatic limits of ``tfdp.workers.standstill`` are made short here.
"""

from __future__ import annotations

import ctypes
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
from tests.processes.recipes import small
from tests.processes.recipes.small import HParams, eval_data, preprocess  # noqa: F401
from tfdp.whereabouts import ALL_REDUCE, CALLBACK, STEP
from tfdp.workers import standstill

AFTER_CALLS = 14
LIMIT_S = 4.0
ANYWHERE_S = 8.0

KIND, INDEX, PATH = os.environ.get("HANG", "::").split(":")
standstill.LEAST_IN_S.update(dict.fromkeys((STEP, ALL_REDUCE), LIMIT_S))
standstill.FACTOR = 0.0  # type: ignore[misc]
if KIND != "slow":
    standstill.LEAST_IN_S[CALLBACK] = LIMIT_S
if KIND == "lock":
    standstill.LEAST_S = ANYWHERE_S  # type: ignore[misc]

_calls = 0
_lock = threading.Lock()


def hang() -> None:
    """Does not return at one of its calls, on the worker that is named, if it never did so."""
    global _calls
    cluster = from_environment()
    with _lock:
        _calls += 1
        if _calls < AFTER_CALLS or Path(PATH).exists() or cluster is None:
            return
        if cluster.index != int(INDEX):
            return
        Path(PATH).touch()
    if KIND == "lock":
        ctypes.PyDLL(None).usleep(600_000_000)
    time.sleep(3 * LIMIT_S if KIND == "slow" else 600)


class HangingSource(tfdp.Source):
    def __init__(self, source: tfdp.Source) -> None:
        self._source = source

    def __len__(self) -> int:
        return len(self._source)

    def read(self, indices: tf.Tensor) -> Any:
        with tf.control_dependencies([tf.numpy_function(self._read, [], tf.int64)]):
            return self._source.read(tf.identity(indices))

    def _read(self) -> np.ndarray:
        hang()
        return np.int64(0)


class HangingLayer(keras.layers.Layer):
    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        zero = tf.ensure_shape(tf.numpy_function(self._compute, [], tf.float32), [])
        return inputs + zero

    def _compute(self) -> np.ndarray:
        hang()
        return np.float32(0)


class HangingCallback(keras.callbacks.Callback):
    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        hang()


def build_model(hparams: HParams) -> keras.Model:
    model = small.build_model(hparams)
    if KIND != "step":
        return model
    hanging = keras.Sequential([keras.layers.Input((6,)), HangingLayer(), *model.layers])
    hanging.compile(model.optimizer, "mse", metrics=["mae"])
    return hanging


def train_data(hparams: HParams) -> Any:
    source = small.train_data(hparams)
    return HangingSource(source) if KIND == "input" else source


def callbacks(hparams: HParams) -> list[keras.callbacks.Callback]:
    own = [HangingCallback()] if KIND in ("callback", "lock", "slow") else []
    return [*small.callbacks(hparams), *own]
