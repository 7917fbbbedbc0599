"""Progress of a run: one line for people, and curves for TensorBoard."""

from __future__ import annotations

import dataclasses
import math
import statistics
import sys
import time
from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from tfdp.data.pipeline import Batches
from tfdp.errors import Diverged
from tfdp.log import say
from tfdp.run.settings import TrainSettings
from tfdp.trainer import timing
from tfdp.trainer.timing import StepTime
from tfdp.workers.collectives import Workers

LINE_EVERY_S = 5.0  # if standard error is not a terminal, so the line can't be rewritten
MIN_INPUT_SHARE = 0.02  # of a step: a shorter wait for input is not shown


class Progress(keras.callbacks.Callback):
    """Shows progress on the chief, and ends the run on all workers if the loss is not finite.

    Args:
        workers: the workers.
        settings: flags of the run.
        batches: the training batches, to count examples.
        first_step: number of earlier updates.
        last_step: number of updates at the end.
    """

    def __init__(
        self,
        workers: Workers,
        settings: TrainSettings,
        batches: Batches,
        first_step: int,
        last_step: int,
    ) -> None:
        super().__init__()
        self._is_chief = workers.is_chief
        self._name_of = workers.name
        self._epoch_steps = batches.steps_per_epoch
        self._examples_before = batches.examples_before or (
            lambda step: step * settings.global_batch_size
        )
        self._step = first_step
        self._last_step = last_step
        self._timed_from: tuple[float, int] | None = None  # the first call traces; not counted
        self._last_line_s = -math.inf
        self._scores: dict[str, Any] = {}
        self._times: Sequence[StepTime] = ()
        self._curves = (
            tf.summary.create_file_writer(str(settings.workdir / "tensorboard"))
            if workers.is_chief and settings.tensorboard
            else None
        )

    @property
    def examples_per_s(self) -> float | None:
        """Examples per second since the first call, over all replicas; None before that."""
        if self._timed_from is None or self._timed_from[1] == self._step:
            return None
        began_s, first_step = self._timed_from
        examples = self._examples_before(self._step) - self._examples_before(first_step)
        return examples / (time.perf_counter() - began_s)

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Notes the epoch, to which batch numbers are relative."""
        self._epoch = epoch

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Shows the step that the run has reached."""
        self._step = self._epoch * self._epoch_steps + batch + 1
        loss = (logs or {}).get("loss", 0.0)
        if not math.isfinite(loss):
            raise Diverged(
                f"the loss is {loss} at step {self._step}: this state was not saved; a smaller "
                "learning rate or gradient clipping may help"
            )
        if self._is_chief:
            self._show(logs or {})
            self._draw({f"train/{name}": value for name, value in (logs or {}).items()})
        if self._timed_from is None:
            self._timed_from = (time.perf_counter(), self._step)

    def observe(self, times: Sequence[StepTime]) -> None:
        """Notes a step's time on each worker; empty while unknown."""
        self._times = times

    def evaluated(self, step: int, scores: dict[str, Any]) -> None:
        """Shows the results of an evaluation."""
        self._scores = scores
        self._last_line_s = -math.inf
        self._draw({f"eval/{name}": value for name, value in scores.items()})

    def close(self) -> None:
        """Ends the progress line and the curves' file."""
        if self._is_chief and sys.stderr.isatty():
            print(file=sys.stderr)
        if self._curves is not None:
            self._curves.close()

    def _draw(self, values: dict[str, Any]) -> None:
        if self._curves is None:
            return
        rate = self.examples_per_s
        if rate is not None:
            values = values | {"train/examples_per_s": rate}
        for worker, time_ in enumerate(self._times):
            for part, seconds in dataclasses.asdict(time_).items():
                values[f"workers/{worker}/{part.removesuffix('_s')}_ms"] = 1000 * seconds
        with self._curves.as_default(step=self._step):
            for name, value in values.items():
                if isinstance(value, (int, float)):
                    tf.summary.scalar(name, value)

    def _show(self, logs: dict[str, Any]) -> None:
        now_s = time.monotonic()
        is_last = self._step == self._last_step
        if sys.stderr.isatty():
            print(f"\r\x1b[K{self._line(logs)}", end="", file=sys.stderr, flush=True)
        elif is_last or now_s - self._last_line_s >= LINE_EVERY_S:
            self._last_line_s = now_s
            say(self._line(logs))

    def _line(self, logs: dict[str, Any]) -> str:
        parts = [f"step {self._step}/{self._last_step}", f"epoch {self._epoch + 1}"]
        shown = logs | {f"eval_{name}": value for name, value in self._scores.items()}
        parts += [f"{name} {v:.4g}" for name, v in shown.items() if isinstance(v, (int, float))]
        rate = self.examples_per_s
        if rate is not None:
            examples = self._examples_before(self._last_step) - self._examples_before(self._step)
            parts += [f"{rate:,.0f} examples/s", f"{examples / rate:.0f} s left"]
        return "  ".join(parts + self._time_remarks())

    def _time_remarks(self) -> list[str]:
        """Returns remarks on where the time goes, if people should know."""
        remarks = []
        waiting = max((time_.input_s / time_.step_s for time_ in self._times), default=0.0)
        if waiting >= MIN_INPUT_SHARE:
            remarks.append(f"waiting for input {waiting:.0%}")
        slowest = timing.straggler(self._times)
        if slowest is not None:
            others = [t.own_s for worker, t in enumerate(self._times) if worker != slowest]
            own_ms = 1000 * self._times[slowest].own_s
            remarks.append(
                f"{self._name_of(slowest)} is the slowest: {own_ms:.3g} ms per step without "
                f"waiting; the others {1000 * statistics.median(others):.3g} ms"
            )
        return remarks
