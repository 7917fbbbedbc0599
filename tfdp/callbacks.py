"""Keras's callbacks on many workers: who runs which, and how often they are asked."""

from __future__ import annotations

import abc
from collections.abc import Iterable, Sequence
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


def check(callbacks: Any, validated: Sequence[str]) -> Sequence[keras.callbacks.Callback]:
    """The callbacks that a recipe gave, if they can do their work.

    Args:
        callbacks: what the recipe's function gave.
        validated: the ``val_*`` that logs will have.

    Raises:
        BadInput: if they are no list of callbacks, or one looks for ``val_*`` in vain.
    """
    if not isinstance(callbacks, (list, tuple)):
        raise BadInput(f"callbacks gave a {type(callbacks).__name__}, and has to give a list")
    for callback in callbacks:
        if not isinstance(callback, keras.callbacks.Callback):
            raise BadInput(
                f"callbacks gave a list with a {type(callback).__name__} in it, and has to give "
                "keras.callbacks.Callback"
            )
        if hasattr(callback, "get_state") != hasattr(callback, "set_state"):
            raise BadInput(
                f"{type(callback).__name__} has one of get_state and set_state: a callback that "
                "goes on where it was has both"
            )
        if getattr(callback, "swap_on_epoch", False):
            raise BadInput(
                "SwapEMAWeights(swap_on_epoch=True) leaves averages in the model between two "
                "epochs, from which a run can't go on exactly: leave swap_on_epoch out"
            )
        monitor = str(getattr(callback, "monitor", ""))
        saves_all = not getattr(callback, "save_best_only", True)  # ModelCheckpoint's default
        if monitor.startswith("val_") and monitor not in validated and not saves_all:
            raise BadInput(
                f"{type(callback).__name__} monitors {monitor}, and an evaluation at an epoch's "
                f"end gives {', '.join(validated) or 'nothing: there is no eval_data'}"
            )
    return callbacks


def want_each_batch(callbacks: Iterable[keras.callbacks.Callback]) -> bool:
    """Whether one looks at single batches: of Keras's own, only those that are told to."""
    return any(
        any(_is_own(callback, hook) for hook in _BATCH_HOOKS)
        or getattr(callback, "save_freq", "epoch") != "epoch"  # ModelCheckpoint
        or getattr(callback, "update_freq", "epoch") != "epoch"  # TensorBoard
        for callback in callbacks
    )


def _is_own(callback: keras.callbacks.Callback, hook: str) -> bool:
    if hook in vars(callback):  # LambdaCallback
        return True
    definer = next(each for each in type(callback).__mro__ if hook in vars(each))
    return not definer.__module__.startswith(("keras.", "tfdp."))
