"""A recipe of this project for the tasks of ``models.py``: what ``python -m tfdp.train`` is given.

It reports what ``training_peers.py`` reads, and, for ``recovery.py``, when steps are done.
"""

from __future__ import annotations

import dataclasses
import time
from typing import Any

import keras
import tfdp

from benchmarks.measuring import report
from benchmarks.peers.models import BATCH, EPOCHS, arrays, build


@dataclasses.dataclass(frozen=True)
class HParams:
    """Which task, how many updates an epoch has, and how many workers share them."""

    task: str = "cnn"
    steps: int = 100
    workers: int = 1


def build_model(hparams: HParams) -> Any:
    keras.utils.set_random_seed(0)
    return build(hparams.task, keras)


def train_data(hparams: HParams) -> Any:
    examples = hparams.steps * BATCH * hparams.workers
    return tfdp.from_arrays(*arrays(hparams.task, examples))


def callbacks(hparams: HParams) -> list[Any]:
    ends: list[float] = []

    def tell(logs: Any) -> None:
        step_s = (ends[-1] - ends[1]) / (EPOCHS - 2) / hparams.steps
        report(step_s=step_s, parameters=clock.model.count_params())

    clock = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda *_: ends.append(time.perf_counter()), on_train_end=tell
    )
    return [clock]
