"""Keras's callbacks on many workers: which worker runs which, and when they are called."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

import keras

from tfdp.errors import BadInput
from tfdp.workers.collectives import Workers

# Keras's callbacks that write files or print.
_WRITERS = (
    keras.callbacks.BackupAndRestore,
    keras.callbacks.CSVLogger,
    keras.callbacks.ModelCheckpoint,
    keras.callbacks.ProgbarLogger,
    keras.callbacks.RemoteMonitor,
    keras.callbacks.TensorBoard,
)
_Kind = Literal["train", "test", "predict"]


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

    Elsewhere, those of Keras don't print either (``verbose``).
    """
    if workers.is_chief:
        return list(callbacks)
    own = [each for each in callbacks if not isinstance(each, _WRITERS)]
    for callback in own:
        if type(callback).__module__.startswith("keras.") and hasattr(callback, "verbose"):
            callback.verbose = 0
    return own


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
        if isinstance(callback, keras.callbacks.BackupAndRestore):
            raise BadInput(
                "BackupAndRestore has nothing to do here: leave it out. python -m tfdp.train saves "
                "checkpoints in its workdir, and goes on at the very step"
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


def observe_each_batch(callbacks: Iterable[keras.callbacks.Callback], kind: _Kind) -> bool:
    """Returns whether a callback observes single batches; Keras's own do only if asked to.

    Args:
        callbacks: the callbacks of this worker.
        kind: the batches of training, evaluation or prediction.
    """
    of_train = kind == "train"
    hooks = [f"on_{kind}_batch_begin", f"on_{kind}_batch_end"]
    hooks += ["on_batch_begin", "on_batch_end"] * of_train
    return any(
        any(_is_own(callback, hook) for hook in hooks)
        or (of_train and getattr(callback, "save_freq", "epoch") != "epoch")  # ModelCheckpoint
        or (of_train and getattr(callback, "update_freq", "epoch") != "epoch")  # TensorBoard
        for callback in callbacks
    )


def listed(
    callbacks: Any,
    model: keras.Model,
    workers: Workers,
    *,
    verbose: str | int,
    steps: int | None,
) -> keras.callbacks.CallbackList:
    """Returns the callbacks of an evaluation or prediction as Keras's list.

    Args:
        callbacks: as for ``Model.evaluate``: None, one, several, or a list of Keras, which is
            returned as it is.
        model: the model.
        workers: the workers.
        verbose: as for ``Model.evaluate``; on other workers than the chief it is 0.
        steps: number of batches, for the progress bar; None if it is unknown.
    """
    if isinstance(callbacks, keras.callbacks.CallbackList):
        return callbacks
    verbose = (1 if verbose == "auto" else int(verbose)) if workers.is_chief else 0
    return keras.callbacks.CallbackList(
        for_worker(flat(callbacks), workers),
        add_progbar=verbose != 0,
        verbose=verbose,
        epochs=1,
        steps=steps,
        model=model,
    )


def flat(callbacks: Any) -> list[keras.callbacks.Callback]:
    """Returns the callbacks among None, one callback, a list of Keras, or nested sequences."""
    if isinstance(callbacks, keras.callbacks.CallbackList):
        callbacks = callbacks.callbacks
    return keras.tree.flatten(callbacks) if callbacks else []


def _is_own(callback: keras.callbacks.Callback, hook: str) -> bool:
    if hook in vars(callback):  # LambdaCallback
        return True
    definer = next(each for each in type(callback).__mro__ if hook in vars(each))
    return not definer.__module__.startswith(("keras.", "tfdp."))
