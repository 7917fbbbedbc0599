"""The loop: many updates in a call into TensorFlow, an agreement of all workers before each.

A call takes about a second at the most, because nothing else gets a word in while it lasts: no
signal, no callback, no news from another worker. How many updates that is, whether to stop, the
learning rate and who has failed are agreed on by one small exchange, so that every worker does the
same number of steps and every decision holds everywhere.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator

import keras
import numpy as np

from tfdp import timing
from tfdp.errors import PeerFailed, Stopped
from tfdp.exchange import Exchange
from tfdp.feed import Batches
from tfdp.steps import train_steps
from tfdp.team import Team
from tfdp.timing import StepTime

CALL_S = 0.8  # what a call should take
GROWTH = 8  # how much longer the next call may be: the first ones are too short to judge by
TELL_S = 10.0  # how long a failed worker waits for the others to hear of it

_TOOK = ("step_s", "input_s", "reduce_s")
_NOTHING = (math.nan,) * len(_TOOK)


class Loop:
    """Updates of a model, from ``first_step`` on.

    Args:
        model: a built and compiled model.
        batches: its training batches, starting with the one of ``first_step``.
        team: the workers.
        first_step: updates done before.
        draws_from: added to the step that random layers draw from.
        accumulate_steps: pieces in which a replica computes its part of a batch.
        exchange: how gradients are summed over replicas, its pack size settled.
        one_by_one: one update a call, for callbacks that want to see each.
        told_to_stop: asked between calls; true ends the run on all workers.
    """

    def __init__(
        self,
        model: keras.Model,
        batches: Batches,
        team: Team,
        *,
        first_step: int = 0,
        draws_from: int = 0,
        accumulate_steps: int = 1,
        exchange: Exchange,
        one_by_one: bool = False,
        told_to_stop: Callable[[], bool] = lambda: False,
    ) -> None:
        self.step = first_step
        self._model = model
        self._team = team
        self._iterator = batches.iterator()
        self._run = train_steps(
            model,
            batches,
            draws_from=draws_from,
            accumulate_steps=accumulate_steps,
            exchange=exchange,
        )
        self._one_by_one = one_by_one
        self._one_by_one_for_all = False
        self._told_to_stop = told_to_stop
        self._steps_per_call = 1
        self._steps = 1  # of the call that is announced
        self._took: tuple[float, ...] | None = None  # a step of the last call: all, input, reduce
        self.times: list[StepTime] = []  # a step of the last call, on each worker

    def until(self, last_step: int) -> Iterator[tuple[int, int]]:
        """Splits the way to ``last_step`` into calls, to be made by ``call``.

        It ends early if ``model.stop_training`` is set on any worker.

        Yields:
            The next call's first step, and the step after its last.
        """
        while True:
            self._steps = min(self._steps_per_call, last_step - self.step)
            yield self.step, self.step + self._steps
            if self.step >= last_step or not self.agree():
                return

    def call(self) -> None:
        """Makes the call that ``until`` has announced."""
        if self._one_by_one_for_all:
            self.agree()  # a callback may just have set the learning rate for this very step
        began_s = time.perf_counter()
        waited = self._run(self._iterator, self.step, self._steps)
        took_s = time.perf_counter() - began_s
        # The first call spends its time on tracing and tells nothing.
        self._took = (
            _NOTHING
            if self._took is None
            else tuple(each_s / self._steps for each_s in (took_s, *waited))
        )
        self.step += self._steps

    def agree(self) -> bool:
        """Shares what each worker knows and wants; every worker comes to the same decisions.

        Returns:
            Whether to go on: false if ``model.stop_training`` is set on any worker.

        Raises:
            Stopped: if a worker was told to stop.
            PeerFailed: if another worker has failed.
        """
        table = self._exchange(None)
        self._model.stop_training = bool(table["stop_training"].any())
        if not math.isnan(table["learning_rate"][0]) and len(set(table["learning_rate"])) > 1:
            self._model.optimizer.learning_rate = table["learning_rate"][0]
        if table["told_to_stop"].any():
            raise Stopped(self.step, int(table["told_to_stop"].argmax()))
        self._one_by_one_for_all = bool(table["one_by_one"].any())
        step_s = table["step_s"].max()
        if math.isnan(step_s):
            return not self._model.stop_training
        self.times = timing.split(*(table[name].tolist() for name in _TOOK))
        if not self._one_by_one_for_all:
            fitting = int(CALL_S / max(step_s, 1e-9))
            self._steps_per_call = max(1, min(fitting, GROWTH * self._steps_per_call))
        return not self._model.stop_training

    def tell(self, error: BaseException) -> None:
        """Lets the other workers know that this one ends by a fault of its own.

        They hear of it when they come to their next agreement. If they never do, because they
        wait for this worker in another place, they will find it gone.
        """
        telling = threading.Thread(target=self._exchange, args=(error,), daemon=True)
        telling.start()
        telling.join(TELL_S)

    def _exchange(self, error: BaseException | None) -> dict[str, np.ndarray]:
        mine = {
            "failed": error is not None,
            "told_to_stop": self._told_to_stop(),
            "stop_training": bool(self._model.stop_training),
            "learning_rate": _learning_rate(self._model),
            "one_by_one": self._one_by_one,
            **dict(zip(("step_s", "input_s", "reduce_s"), self._took or _NOTHING, strict=True)),
        }
        rows = self._team.gather(np.array(list(mine.values()), np.float64))
        table = dict(zip(mine, rows.T, strict=True))
        if table["failed"].any():
            messages = self._team.gather_bytes(repr(error).encode())
            if error is None:
                culprit = int(table["failed"].argmax())
                raise PeerFailed(f"worker {culprit} failed: {messages[culprit].decode()}")
        return table


def _learning_rate(model: keras.Model) -> float:
    """The optimizer's learning rate, or NaN where nobody can set it: a schedule does."""
    rate = getattr(model.optimizer, "learning_rate", None)
    return float(rate.numpy()) if isinstance(rate, keras.Variable) else math.nan
