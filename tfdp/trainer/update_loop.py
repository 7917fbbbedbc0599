"""The inner loop of training: many updates per call into TensorFlow.

Before each call, all workers agree. A call takes at most about a second, because nothing else runs
while it lasts: no signal, no callback, no message from another worker. One small all-reduce decides
how many updates the next call runs, whether to stop, the learning rate, and whether a worker has
failed. So all workers run the same number of steps, and every decision holds everywhere.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np

from tfdp.data import pipeline
from tfdp.data.batch_digest import same_examples
from tfdp.errors import BadInput, PeerFailed, Stopped
from tfdp.step import keras_private, metrics
from tfdp.step.train_step import TrainSteps
from tfdp.trainer import timing
from tfdp.trainer.timing import StepTime
from tfdp.whereabouts import SIGNS
from tfdp.workers.collectives import Workers

CALL_S = 0.8  # intended duration of a call
MAX_GROWTH = 8  # from one call to the next, in steps: the first calls are too short to judge by
REPORT_TIMEOUT_S = 10.0  # for the other workers to receive a failure

_TIMES = ("step_s", "input_s", "reduce_s")
_UNKNOWN_TIMES = (math.nan,) * len(_TIMES)


class UpdateLoop:
    """Updates of a model, from ``first_step`` on.

    Args:
        model: a built and compiled model.
        iterator: over its training batches, starting with the batch of ``first_step``.
        workers: the workers.
        updates: runs updates of the model as it is compiled now.
        first_step: number of earlier updates.
        updates_anew: returns other ``updates`` after a callback has compiled the model anew, on all
            workers; None if no callback may do so.
        one_by_one: run one update per call (or ``steps_per_execution``), for callbacks that observe
            each batch.
        should_stop: called between calls; true stops the run on all workers.

    Attributes:
        step: number of updates done.
        times: the mean step of the last call but one, on each worker; empty while unknown.
    """

    def __init__(
        self,
        model: keras.Model,
        iterator: Any,
        workers: Workers,
        updates: TrainSteps,
        *,
        first_step: int = 0,
        updates_anew: Callable[[], TrainSteps] | None = None,
        one_by_one: bool = False,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> None:
        self.step = SIGNS.step = first_step
        self.times: list[StepTime] = []
        self._model = model
        self._workers = workers
        self._iterator = iterator
        self._updates = updates
        self._compilation = keras_private.compilation(model)
        self._updates_anew = updates_anew
        metrics.forget_evaluation(model)
        self._one_by_one = one_by_one
        self._one_by_one_on_any = False
        self._should_stop = should_stop
        self._max_steps = 1  # of the next call
        self._steps = 1  # of the call that ``until`` has announced
        self._own_times: tuple[float, ...] | None = None  # a mean step of the last call
        self._digest = 0  # of the global batches read so far
        self._compared_step = first_step  # to which workers have read the same

    def until(self, last_step: int) -> Iterator[tuple[int, int]]:
        """Splits the way to ``last_step`` into calls; the caller runs each by ``call``.

        It ends early if ``model.stop_training`` is set on any worker.

        Yields:
            The first step of the next call, and the step after its last.
        """
        while True:
            self._steps = min(self._max_steps, last_step - self.step)
            yield self.step, self.step + self._steps
            if self.step >= last_step or not self.agree():
                return

    def call(self) -> None:
        """Runs the call that ``until`` has announced."""
        if self._one_by_one_on_any:
            self.agree()  # a callback may just have set the learning rate for this very step
        began_s = time.perf_counter()
        took = self._updates.run(self._iterator, self.step, self._steps)
        *waited, self._digest = took
        took_s = time.perf_counter() - began_s
        # The first call spends its time on tracing.
        self._own_times = (
            _UNKNOWN_TIMES
            if self._own_times is None
            else tuple(seconds / self._steps for seconds in (took_s, *waited))
        )
        self.step += self._steps
        SIGNS.give_step(self.step)

    def agree(self) -> bool:
        """Exchanges the workers' states and requests; all workers come to the same decisions.

        Returns:
            Whether to go on: false if ``model.stop_training`` is set on any worker.

        Raises:
            BadInput: if the workers have read different global batches.
            Stopped: if ``should_stop`` returned true on a worker.
            PeerFailed: if another worker has failed.
            BadInput: if a callback compiled the model on some of the workers only, or may not.
        """
        of_workers = self._gather_states(None)
        if len(set(of_workers["digest"])) > 1:
            steps = f"batches (at step {self._compared_step + 1} to {self.step})"
            raise BadInput(pipeline.describe_difference(steps))
        self._compared_step = self.step
        if of_workers["is_compiled_anew"].any():
            self._follow_compilation(of_workers["is_compiled_anew"])
        if of_workers["is_evaluated"].any():
            first = int(of_workers["is_evaluated"].argmax())
            metrics.go_on_from_evaluation(self._model, is_own=first == self._workers.index)
        self._model.stop_training = bool(of_workers["stop_training"].any())
        rates = of_workers["learning_rate"]
        if not math.isnan(rates[0]) and len(set(rates)) > 1:
            self._model.optimizer.learning_rate = rates[0]
        if of_workers["should_stop"].any():
            raise Stopped(self.step, self._workers.name(int(of_workers["should_stop"].argmax())))
        self._one_by_one_on_any = bool(of_workers["one_by_one"].any())
        if self._one_by_one_on_any:
            self._max_steps = self._model.steps_per_execution
        slowest_s = of_workers["step_s"].max()
        if math.isnan(slowest_s):
            return not self._model.stop_training
        self.times = timing.split(*(of_workers[name].tolist() for name in _TIMES))
        if not self._one_by_one_on_any:
            fitting = int(CALL_S / max(slowest_s, 1e-9))
            self._max_steps = max(1, min(fitting, MAX_GROWTH * self._max_steps))
        return not self._model.stop_training

    def read_logs(self) -> dict[str, Any]:
        """Returns the logs of the last update by name, over all replicas; a collective."""
        return self._updates.read_logs()

    def _follow_compilation(self, is_compiled_anew: np.ndarray) -> None:
        if self._updates_anew is None:
            raise BadInput(
                "a callback compiled the model during training, which a resumed run can't repeat: "
                "train the parts of the model in two runs, or use tfdp.fit in a script"
            )
        if not is_compiled_anew.all():
            where = np.flatnonzero(is_compiled_anew).tolist()
            self._workers.settle()
            raise BadInput(
                f"a callback compiled the model on worker(s) {where} of {self._workers.count} "
                "only: compile it on all workers (not under tfdp.is_chief())"
            )
        self._updates = self._updates_anew()
        self._compilation = keras_private.compilation(self._model)
        self._own_times = None  # the next call spends its time on tracing

    def report_failure(self, error: BaseException) -> None:
        """Reports to the other workers that this one ends by a fault of its own.

        They receive it at their next ``agree``. If they wait in another collective, they don't
        receive it, and learn of the error only when this process ends.
        """
        reporting = threading.Thread(target=self._gather_states, args=(error,), daemon=True)
        reporting.start()
        reporting.join(REPORT_TIMEOUT_S)

    def _gather_states(self, error: BaseException | None) -> dict[str, np.ndarray]:
        """Returns one array per quantity, with the value of each worker."""
        own = {
            "failed": error is not None,
            "should_stop": self._should_stop(),
            "stop_training": bool(self._model.stop_training),
            "learning_rate": _learning_rate(self._model),
            "one_by_one": self._one_by_one,
            "digest": same_examples(self._digest),
            "is_evaluated": metrics.has_evaluation(self._model),
            "is_compiled_anew": keras_private.compilation(self._model) is not self._compilation,
            **dict(zip(_TIMES, self._own_times or _UNKNOWN_TIMES, strict=True)),
        }
        rows = self._workers.gather(np.array(list(own.values()), np.float64))
        of_workers = dict(zip(own, rows.T, strict=True))
        if of_workers["failed"].any():
            messages = self._workers.gather_bytes(repr(error).encode())
            if error is None:
                culprit = int(of_workers["failed"].argmax())
                raise PeerFailed(
                    f"{self._workers.name(culprit)} failed: {messages[culprit].decode()}"
                )
        return of_workers


def _learning_rate(model: keras.Model) -> float:
    """Returns the optimizer's learning rate; NaN if a schedule determines it."""
    rate = getattr(model.optimizer, "learning_rate", None)
    return float(rate.numpy()) if isinstance(rate, keras.Variable) else math.nan
