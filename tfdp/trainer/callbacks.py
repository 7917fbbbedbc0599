"""Keras's callbacks on many workers: which worker runs which, and when they are called."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import keras

from tfdp.errors import BadInput
from tfdp.workers.collectives import Workers

# Keras's callbacks that write files or print.
_WRITERS = (
    keras.callbacks.CSVLogger,
    keras.callbacks.ModelCheckpoint,
    keras.callbacks.ProgbarLogger,
    keras.callbacks.RemoteMonitor,
    keras.callbacks.TensorBoard,
)
_BATCH_HOOKS = ("on_batch_begin", "on_batch_end", "on_train_batch_begin", "on_train_batch_end")


class StepCallback(keras.callbacks.Callback):
    """A callback that acts after every ``every_steps`` updates, and after the run's last one.

    Calls into TensorFlow end at these steps.

    Args:
        every_steps: number of updates from one action to the next, at least 1.
        action: called with the number of updates done.
    """

    def __init__(self, every_steps: int, action: Callable[[int], None]) -> None:
        super().__init__()
        self.every_steps = every_steps
        self.action = action

    def next_after(self, step: int) -> int:
        """Returns the first step after ``step`` to act at."""
        return (step // self.every_steps + 1) * self.every_steps


def for_worker(callbacks: Iterable[keras.callbacks.Callback], workers: Workers) -> list[Any]:
    """Returns the callbacks that this worker runs: all on the chief, elsewhere only non-writers.

    Raises:
        BadInput: for BackupAndRestore, which can't work on several workers.
    """
    callbacks = list(callbacks)
    for callback in callbacks:
        if isinstance(callback, keras.callbacks.BackupAndRestore):
            raise BadInput(
                "BackupAndRestore does not restore the place in an epoch and fails when workers "
                "share its folder: use python -m tfdp.train, which resumes exactly"
            )
    return [each for each in callbacks if workers.is_chief or not isinstance(each, _WRITERS)]


def check(callbacks: Any, validated: Sequence[str]) -> Sequence[keras.callbacks.Callback]:
    """Checks the callbacks of a recipe, and returns them.

    Args:
        callbacks: the result of the recipe's function.
        validated: names of the validation metrics in ``logs``, ``val_*``.

    Raises:
        BadInput: if it is not a list of callbacks, or one monitors a ``val_*`` that won't exist.
    """
    if not isinstance(callbacks, (list, tuple)):
        raise BadInput(f"callbacks returned a {type(callbacks).__name__}, and has to return a list")
    for callback in callbacks:
        if not isinstance(callback, keras.callbacks.Callback):
            raise BadInput(
                f"callbacks returned a list with a {type(callback).__name__} in it: each element "
                "has to be a keras.callbacks.Callback"
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


def observe_each_batch(callbacks: Iterable[keras.callbacks.Callback]) -> bool:
    """Returns whether a callback observes single batches; Keras's own do only if asked to."""
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
