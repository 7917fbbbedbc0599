"""Keras's callbacks on many workers: who runs which, and how often they are asked."""

from __future__ import annotations

import abc
from collections.abc import Iterable
from typing import Any

import keras

from tfdp.errors import BadInput
from tfdp.team import Team

# Those of Keras that write: once is enough.
_WRITERS = (
    keras.callbacks.CSVLogger,
    keras.callbacks.ModelCheckpoint,
    keras.callbacks.ProgbarLogger,
    keras.callbacks.RemoteMonitor,
    keras.callbacks.TensorBoard,
)
_BATCH_HOOKS = ("on_batch_begin", "on_batch_end", "on_train_batch_begin", "on_train_batch_end")


class AtSteps(keras.callbacks.Callback, abc.ABC):
    """A callback that acts after every ``every_steps`` updates; calls end there.

    Args:
        every_steps: updates between two acts, at least 1.
    """

    def __init__(self, every_steps: int) -> None:
        super().__init__()
        self.every_steps = every_steps

    def next_after(self, step: int) -> int:
        """The first step after ``step`` to act at."""
        return (step // self.every_steps + 1) * self.every_steps

    @abc.abstractmethod
    def on_step(self, step: int, logs: dict[str, float]) -> None:
        """Acts.

        Args:
            step: updates done, a multiple of ``every_steps`` or the run's last.
            logs: the training metrics so far in this epoch.
        """


def for_worker(callbacks: Iterable[keras.callbacks.Callback], team: Team) -> list[Any]:
    """The callbacks that this worker runs: all on the chief, elsewhere those that don't write.

    Raises:
        BadInput: for BackupAndRestore, which can't work here.
    """
    callbacks = list(callbacks)
    for callback in callbacks:
        if isinstance(callback, keras.callbacks.BackupAndRestore):
            raise BadInput(
                "BackupAndRestore does not restore the place in an epoch and fails when workers "
                "share its folder: use python -m tfdp.train, which resumes exactly"
            )
    return [each for each in callbacks if team.is_chief or not isinstance(each, _WRITERS)]


def want_each_batch(callbacks: Iterable[keras.callbacks.Callback]) -> bool:
    """Whether somebody's own callback looks at single batches; Keras's own make do with fewer."""
    return any(_is_own(callback, hook) for callback in callbacks for hook in _BATCH_HOOKS)


def _is_own(callback: keras.callbacks.Callback, hook: str) -> bool:
    if hook in vars(callback):  # LambdaCallback
        return True
    definer = next(each for each in type(callback).__mro__ if hook in vars(each))
    return not definer.__module__.startswith(("keras.", "tfdp."))
