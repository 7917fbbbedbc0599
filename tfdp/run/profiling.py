"""``--profile``: a TensorBoard profile of some steps, and one sentence on the run's bottleneck."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import tensorflow as tf

from tfdp.log import say
from tfdp.run.settings import TrainSettings
from tfdp.trainer import timing
from tfdp.trainer.timing import StepTime
from tfdp.workers.collectives import Workers

FIRST_TIMED_CALL = 3  # earlier calls trace, or are too short to measure
PROFILED_CALL = 4  # later calls have more steps, up to eight times as many each


class Profile(keras.callbacks.Callback):
    """Profiles one call, times all calls, and prints the result at the end; on the chief.

    Args:
        workers: the workers.
        settings: flags of the run.
        reads_dataset: whether the training data is a ``tf.data.Dataset``, which TensorFlow shards.
        is_bandwidth_bound: whether the time of an all-reduce depends on its bytes.
    """

    def __init__(
        self,
        workers: Workers,
        settings: TrainSettings,
        reads_dataset: bool,
        is_bandwidth_bound: bool,
    ) -> None:
        super().__init__()
        self._workers = workers
        self._settings = settings
        self._reads_dataset = reads_dataset
        self._is_bandwidth_bound = is_bandwidth_bound
        self._is_on = False
        self._calls = 0
        self._call_s = self._host_s = 0.0  # in calls, and between them
        self._since_s = time.perf_counter()
        self._times: list[Sequence[StepTime]] = []

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        """Notes the start of a call."""
        self._calls += 1
        if self._calls > FIRST_TIMED_CALL:
            self._host_s += time.perf_counter() - self._since_s
        if self._calls == PROFILED_CALL and self._workers.is_chief:
            tf.profiler.experimental.start(str(self._settings.workdir / "tensorboard"))
            self._is_on = True
        self._since_s = time.perf_counter()

    def observe(self, times: Sequence[StepTime]) -> None:
        """Notes the end of a call, and a step's time on each worker in the previous call."""
        if self._calls >= FIRST_TIMED_CALL:
            self._call_s += time.perf_counter() - self._since_s
        if times:
            self._times.append(times)
        self._stop()
        self._since_s = time.perf_counter()

    def close(self) -> None:
        """Prints the run's bottleneck and the flag to try; call it once, at the end."""
        self._stop()
        if not self._workers.is_chief:
            return
        if self._calls < PROFILED_CALL or not self._times:
            say(f"--profile: the run had {self._calls} calls into TensorFlow, too few to tell")
            return
        shares = timing.shares(self._times, self._host_s / (self._call_s + self._host_s))
        is_bound = self._is_bandwidth_bound
        say(describe_bottleneck(shares, self._settings, self._reads_dataset, is_bound))

    def _stop(self) -> None:
        if self._is_on:
            tf.profiler.experimental.stop()
        self._is_on = False


def describe_bottleneck(
    shares: Mapping[str, float],
    settings: TrainSettings,
    reads_dataset: bool,
    is_bandwidth_bound: bool,
) -> str:
    """Returns a sentence with the run's bottleneck and the flag to try next.

    Args:
        shares: shares of the time, from ``timing.shares``.
        settings: flags of the run.
        reads_dataset: whether the training data is a ``tf.data.Dataset``.
        is_bandwidth_bound: whether the time of an all-reduce depends on its bytes.
    """
    bound = max(shares, key=lambda name: shares[name])
    if bound == "input":
        advice = "try less work in preprocess, or more cores for each worker"
        if reads_dataset and settings.auto_shard != "file":
            advice = "try --auto_shard=file, with which a worker reads its own files only"
    elif bound == "compute":
        advice = "try more workers"
        if settings.mixed_precision == "none" and tf.config.list_physical_devices("GPU"):
            advice = "try --mixed_precision=bfloat16"
    elif bound == "all-reduce":
        advice = f"try --global_batch_size={2 * settings.global_batch_size}, for fewer updates"
        if is_bandwidth_bound and settings.gradient_dtype == "float32":
            advice = "try --gradient_dtype=bfloat16, which halves the bytes that are sent"
    else:
        advice = f"try --checkpoint_every_steps={10 * settings.checkpoint_every_steps}"
        if settings.eval_every_steps:
            advice = f"try --eval_every_steps={10 * settings.eval_every_steps}"
    parts = ", ".join(f"{name} {share:.0%}" for name, share in shares.items())
    return f"this run is limited by {bound} ({parts}): {advice}"
