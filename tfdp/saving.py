"""Saving a run on the way, and putting it back: model, metrics, callbacks, and its best."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import keras

from tfdp import callback_states, state
from tfdp.callbacks import for_worker
from tfdp.checkpoints import Checkpoints
from tfdp.log import say
from tfdp.standing import Standing
from tfdp.team import Team


class Saver:
    """Saves a run; every worker has one, and the chief's writes.

    Made for a run that goes on, it gives the model the state of the checkpoint.

    Args:
        model: a built model.
        team: the workers.
        checkpoints: on the chief; None on others.
        callbacks: all whose state is saved.
        standing: where the run stands.
        keep_best: ``NAME:min`` or ``NAME:max`` of an evaluation; empty for none.

    Raises:
        BadInput: if the checkpoint is of another model.
    """

    def __init__(
        self,
        model: keras.Model,
        team: Team,
        checkpoints: Checkpoints | None,
        callbacks: Sequence[keras.callbacks.Callback],
        standing: Standing,
        keep_best: str,
    ) -> None:
        self.step = standing.step  # of the newest checkpoint
        self.best: dict[str, Any] | None = standing.about["best"]
        self._model = model
        self._team = team
        self._checkpoints = checkpoints
        self._callbacks = callbacks
        self._about = standing.about
        self._keep_best = keep_best
        self._found = {} if standing.checkpoint is None else standing.checkpoint.arrays()
        if self._found:
            state.check(model, self._found)
            state.restore(model, team, self._found)

    def restore(self) -> None:
        """Puts back what callbacks have changed when they were told that training begins."""
        if not self._found:
            return
        state.restore(self._model, self._team, self._found)
        here = for_worker(self._callbacks, self._team)
        anew = callback_states.restore(self._callbacks, here, self._found)
        if anew and self._team.is_chief:
            say(f"{', '.join(anew)} begin anew: the checkpoint knows nothing of them")
        self._model.stop_training = self._about["stopped_early"]
        self._found = {}  # it is large

    def save(self, step: int, stopped_early: bool = False) -> None:
        """Saves, unless that step is saved already; a collective.

        Args:
            step: updates done.
            stopped_early: whether a callback has ended the run here.
        """
        if step == self.step:
            return
        arrays = state.capture(self._model, self._team)
        if self._checkpoints is not None:
            self._checkpoints.save(
                step,
                arrays | callback_states.capture(self._callbacks),
                self._about | {"stopped_early": stopped_early, "best": self.best},
                best=None if self.best is None else self.best["step"],
            )
        self.step = step

    def save_if_best(self, step: int, scores: Mapping[str, Any], stopped_early: bool) -> None:
        """Saves if this evaluation is the best so far, which that checkpoint then knows."""
        name, _, which = self._keep_best.rpartition(":")
        if not name or math.isnan(scores[name]):
            return
        if self.best is not None and self.best["by"] == self._keep_best:
            value, least = scores[name], self.best["value"]
            if not (value > least if which == "max" else value < least):
                return
        self.best = {"by": self._keep_best, "step": step, "value": scores[name]}
        self.save(step, stopped_early)

    def check(self) -> None:
        """Raises what went wrong with writing so far; waits for nothing."""
        if self._checkpoints is not None:
            self._checkpoints.check()

    def wait(self) -> None:
        """Returns when what was saved is on the chief's disk; raises what went wrong with it."""
        if self._checkpoints is not None:
            self._checkpoints.wait()
