"""A recipe for the tasks of ``models.py``: what ``python -m tfdp.train`` is given.

It reports the time of a step at the end, or, for ``recovery.py``, when the first one is done.
"""

from __future__ import annotations

import dataclasses
import json
import os
import time
from typing import Any

import keras

import tfdp
from benchmarks.measuring import report
from benchmarks.peers.models import BATCH, EPOCHS, arrays, build


@dataclasses.dataclass(frozen=True)
class HParams:
    """Which task, how many updates an epoch has, how many workers share them, what to report."""

    task: str = "cnn"
    steps: int = 100
    workers: int = 1
    report_first: bool = False


def build_model(hparams: HParams) -> Any:
    keras.utils.set_random_seed(0)
    return build(hparams.task, keras)


def train_data(hparams: HParams) -> Any:
    examples = hparams.steps * BATCH * hparams.workers
    return tfdp.from_arrays(*arrays(hparams.task, examples))


class FirstStep(keras.callbacks.Callback):
    """Reports when the first update of this process is done, and where its run stands then."""

    reported = False

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        if not self.reported:
            self.reported = True
            rank = json.loads(os.environ["TF_CONFIG"])["task"]["index"]
            step = int(self.model.optimizer.iterations.numpy())
            report(rank=rank, pid=os.getpid(), step=step, at_s=time.monotonic())


def callbacks(hparams: HParams) -> list[Any]:
    if hparams.report_first:
        return [FirstStep()]
    ends: list[float] = []

    def tell(logs: Any) -> None:
        step_s = (ends[-1] - ends[1]) / (EPOCHS - 2) / hparams.steps
        report(step_s=step_s, parameters=clock.model.count_params())

    clock = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda *_: ends.append(time.perf_counter()), on_train_end=tell
    )
    return [clock]
