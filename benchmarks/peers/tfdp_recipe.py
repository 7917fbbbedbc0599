"""A recipe for ``python -m tfdp.train`` that trains the tasks of ``models.py``.

It reports seconds per step at the end, or, for ``recovery.py``, when the first step is done.
"""

from __future__ import annotations

import dataclasses
import json
import os
import time
from typing import Any

import keras

import tfdp
from benchmarks.measuring import EpochTimes, report
from benchmarks.peers.models import BATCH, arrays, build


@dataclasses.dataclass(frozen=True)
class HParams:
    """The task, updates in an epoch, workers, and whether to report only the first update."""

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
    """Reports the time of this process's first update, and the run's number of updates then."""

    has_reported = False

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        if not self.has_reported:
            self.has_reported = True
            rank = json.loads(os.environ["TF_CONFIG"])["task"]["index"]
            step = int(self.model.optimizer.iterations.numpy())
            report(rank=rank, pid=os.getpid(), step=step, at_s=time.monotonic())


def callbacks(hparams: HParams) -> list[Any]:
    if hparams.report_first:
        return [FirstStep()]
    times = EpochTimes()

    def report_step_time(logs: Any) -> None:
        report(step_s=times.step_s(hparams.steps), parameters=clock.model.count_params())

    clock = keras.callbacks.LambdaCallback(on_epoch_end=times.record, on_train_end=report_step_time)
    return [clock]
