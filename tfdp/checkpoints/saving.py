"""Saving a run while it trains, and restoring it: model, metrics, callbacks, and the best step."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np

from tfdp.checkpoints import callback_state, state
from tfdp.checkpoints.store import Checkpoint, CheckpointStore
from tfdp.log import say
from tfdp.whereabouts import marked
from tfdp.workers.collectives import Workers


class Saver:
    """Saves a run. Every worker has one; the chief's writes.

    Args:
        model: a built model.
        workers: the workers.
        store: the run's checkpoints, on the chief; None on other workers.
        callbacks: all callbacks whose state is saved, in the same order on all workers.
        local_callbacks: those of them that run on this worker.
        step: step of the newest checkpoint; 0 if there is none.
        about: the manifest's description of the run.
        checkpoint: the checkpoint of that step; None if there is none.
        keep_best: ``NAME:min`` or ``NAME:max`` of an evaluation; empty for none.
    """

    def __init__(
        self,
        model: keras.Model,
        workers: Workers,
        store: CheckpointStore | None,
        *,
        callbacks: Sequence[keras.callbacks.Callback],
        local_callbacks: Sequence[keras.callbacks.Callback],
        step: int,
        about: Mapping[str, Any],
        checkpoint: Checkpoint | None,
        keep_best: str,
    ) -> None:
        self.step = step  # of the newest checkpoint
        self.best: dict[str, Any] | None = about["best"]
        self._model = model
        self._workers = workers
        self._store = store
        self._callbacks = callbacks
        self._local_callbacks = local_callbacks
        self._about = about
        self._keep_best = keep_best
        self._checkpoint = checkpoint
        self._copies: dict[str, np.ndarray] = {}

    def restore_model(self) -> None:
        """Restores the model from the checkpoint, if there is one.

        Raises:
            BadInput: if the checkpoint is of another model.
        """
        if self._checkpoint is not None:
            state.check(self._model, self._checkpoint.places)
            state.restore(self._model, self._workers, self._checkpoint)

    def restore_after_hooks(self) -> None:
        """Restores model and callbacks, after ``on_train_begin`` of callbacks changed them."""
        checkpoint, self._checkpoint = self._checkpoint, None
        if checkpoint is None:
            return
        if all(type(each) is keras.callbacks.History for each in self._callbacks):
            checkpoint = state.without_variables(checkpoint)  # nobody has changed them
        others = state.restore(self._model, self._workers, checkpoint)
        unsaved = callback_state.restore(self._callbacks, self._local_callbacks, others)
        if unsaved and self._workers.is_chief:
            say(f"{', '.join(unsaved)} start without a state: the checkpoint has none for them")
        self._model.stop_training = self._about["stopped_early"]

    @marked("saving")
    def save(self, step: int, stopped_early: bool = False) -> None:
        """Saves, unless that step is already saved; a collective.

        Args:
            step: number of updates done.
            stopped_early: whether a callback has ended the run at this step.
        """
        if step == self.step:
            return
        self.wait()  # the copies are still being written
        self._copies = state.capture(self._model, self._workers, self._copies)
        if self._store is not None:
            self._store.save(
                step,
                self._copies | callback_state.capture(self._callbacks),
                {**self._about, "stopped_early": stopped_early, "best": self.best},
                best=None if self.best is None else self.best["step"],
            )
        self.step = step

    def save_if_best(self, step: int, scores: Mapping[str, Any], stopped_early: bool) -> None:
        """Saves if this evaluation is the best so far, and records it in the checkpoint."""
        metric, _, direction = self._keep_best.rpartition(":")
        if not metric or math.isnan(scores[metric]):
            return
        if self.best is not None and self.best["by"] == self._keep_best:
            score, best_score = scores[metric], self.best["value"]
            if not (score > best_score if direction == "max" else score < best_score):
                return
        self.best = {"by": self._keep_best, "step": step, "value": scores[metric]}
        self.save(step, stopped_early)

    def check(self) -> None:
        """Raises the error of a failed write so far; does not wait for a running one."""
        if self._store is not None:
            self._store.check()

    @marked("saving")
    def wait(self) -> None:
        """Returns when all checkpoints are on disk; raises the error of a failed write."""
        if self._store is not None:
            self._store.wait()
