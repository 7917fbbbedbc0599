"""The outer loop of training: epochs, with callbacks and validation around the updates."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

import keras
import tensorflow as tf

from tfdp.data.pipeline import Batches
from tfdp.errors import Paused, PeerFailed, Regrouping, Stopped
from tfdp.step.gradients import GradientAllReduce
from tfdp.step.train_step import TrainSteps, train_steps
from tfdp.trainer import callbacks as callbacks_module
from tfdp.trainer import compiled, keras_methods
from tfdp.trainer.callbacks import StepCallback
from tfdp.trainer.timing import StepTime
from tfdp.trainer.update_loop import UpdateLoop
from tfdp.whereabouts import marked
from tfdp.workers.collectives import Workers
from tfdp.workers.faults import FAULTS


@marked("training")
def run_epochs(
    model: keras.Model,
    batches: Batches,
    workers: Workers,
    *,
    steps_per_epoch: int,
    first_step: int,
    last_step: int,
    draws_from: int = 0,
    accumulate_steps: int = 1,
    all_reduce: GradientAllReduce,
    callbacks: Sequence[keras.callbacks.Callback],
    verbose: int = 0,
    validate: Callable[..., dict[str, Any]] | None = None,
    validation_freq: int | Collection[int] = 1,
    may_compile: bool = True,
    restore: Callable[[], None] = lambda: None,
    should_stop: Callable[[], bool] = lambda: False,
    observe: Callable[[Sequence[StepTime]], None] = lambda times: None,
) -> keras.callbacks.History:
    """Runs updates ``first_step`` to ``last_step`` with callbacks around them.

    Args:
        model: a compiled model; built here if it isn't.
        batches: its training batches, from ``first_step`` on.
        workers: the workers.
        steps_per_epoch: updates per epoch.
        first_step: number of earlier updates; may be in the middle of an epoch.
        last_step: number of updates at the end; may be in the middle of an epoch.
        draws_from: added to the step that random layers draw from, for a model that was trained
            before.
        accumulate_steps: number of micro-batches in which a replica computes its share of a batch.
        all_reduce: how gradients are summed over replicas.
        callbacks: Keras's and users' callbacks; each ``StepCallback`` acts at its own steps.
        verbose: as for Keras's progress bar.
        validate: evaluates the model; called with the callback list as ``callbacks``.
        validation_freq: epochs from one validation to the next, or the numbers (from 1) of the
            epochs to validate after.
        may_compile: whether a callback may compile the model anew. A resumed run could not repeat
            that.
        restore: called after ``on_train_begin`` and, if the run starts in the middle of an epoch,
            after ``on_epoch_begin``. It restores the state after ``first_step``.
        should_stop: called between calls into TensorFlow; true on one worker stops all.
        observe: called after each call into TensorFlow with each worker's step time, one call late.

    Returns:
        Keras's History.

    Raises:
        Stopped: if ``should_stop`` returned true on a worker.
        PeerFailed: if another worker failed.
    """
    keras_methods.adapt()

    def updates_as_compiled() -> TrainSteps:
        compiled.prepare(model, "train_step", batches, accumulate_steps)
        return train_steps(
            model,
            batches,
            draws_from=draws_from,
            accumulate_steps=accumulate_steps,
            all_reduce=all_reduce.with_pack_size(model, workers.replicas),
        )

    updates = updates_as_compiled()
    local_callbacks = callbacks_module.for_worker(callbacks, workers)
    callback_list = keras.callbacks.CallbackList(
        local_callbacks,
        add_history=True,
        add_progbar=verbose != 0,
        verbose=verbose,
        epochs=-(-last_step // steps_per_epoch),
        steps=steps_per_epoch,
        model=model,
    )
    hooks = _HookState()
    loop = UpdateLoop(
        model,
        batches.iterator(),
        workers,
        updates,
        first_step=first_step,
        updates_anew=updates_as_compiled if may_compile else None,
        one_by_one=callbacks_module.observe_each_batch(local_callbacks, "train"),
        should_stop=lambda: not hooks.are_open and should_stop(),
    )
    epochs = _Epochs(
        model=model,
        loop=loop,
        callbacks=callback_list,
        step_callbacks=[each for each in local_callbacks if isinstance(each, StepCallback)],
        hooks=hooks,
        steps_per_epoch=steps_per_epoch,
        last_step=last_step,
        validate=validate,
        validation_freq=validation_freq,
        observe=observe,
    )
    model.stop_training = False
    with _reporting_failures(loop):
        epochs.begin(restore)
        while loop.step < last_step and loop.agree():
            epochs.run_to_next_stop()
        epochs.finish()
    workers.settle()
    return model.history


@dataclasses.dataclass
class _HookState:
    """Whether a callback's hook was called whose counterpart was not yet called.

    A run may stop only if none is open: a resumed run would repeat the effect of the first hook.
    """

    are_open: bool = False


@dataclasses.dataclass(kw_only=True)
class _Epochs:
    """The callbacks around the updates; arguments as for ``run_epochs``."""

    model: keras.Model
    loop: UpdateLoop
    callbacks: keras.callbacks.CallbackList
    step_callbacks: list[StepCallback]
    hooks: _HookState
    steps_per_epoch: int
    last_step: int
    validate: Callable[..., dict[str, Any]] | None
    validation_freq: int | Collection[int]
    observe: Callable[[Sequence[StepTime]], None]
    logs: dict[str, Any] = dataclasses.field(default_factory=dict)

    def begin(self, restore: Callable[[], None]) -> None:
        """Calls the hooks that precede the first update, then ``restore``."""
        epoch, batch = divmod(self.loop.step, self.steps_per_epoch)
        self.callbacks.on_train_begin()
        if batch:
            self.callbacks.on_epoch_begin(epoch)
        restore()

    def run_to_next_stop(self) -> None:
        """Runs updates to the end of the epoch, or to the next step of a ``StepCallback``."""
        loop = self.loop
        self.hooks.are_open = True
        epoch, batch = divmod(loop.step, self.steps_per_epoch)
        if batch == 0:
            self.model.reset_metrics()
            self.callbacks.on_epoch_begin(epoch)
            loop.agree()  # on what callbacks have set for this epoch
        epoch_end = (epoch + 1) * self.steps_per_epoch
        stops = [each.next_after(loop.step) for each in self.step_callbacks]
        self._run_updates(min(epoch_end, self.last_step, *stops))
        loop.agree()  # a callback may have set stop_training on one worker alone
        if loop.step == epoch_end or self.model.stop_training:
            self._end_epoch(epoch)
            loop.agree()
        for each in self.step_callbacks:
            is_last = loop.step == self.last_step or self.model.stop_training
            if is_last or loop.step == each.next_after(loop.step - 1):
                each.action(loop.step)
        self.hooks.are_open = False

    def finish(self) -> None:
        """Ends the last epoch and training; a run that is killed in here repeats all of it."""
        epoch, batch = divmod(self.loop.step, self.steps_per_epoch)
        if batch and not self.model.stop_training:
            self.logs = self.loop.read_logs()
            self._end_epoch(epoch)
        if self.loop.step and self.model.optimizer:
            # With use_ema, weights become their averages here.
            self.model.optimizer.finalize_variable_values(self.model.trainable_weights)
        self.callbacks.on_train_end(dict(self.logs))
        self.loop.agree()  # another worker may have failed meanwhile

    def _run_updates(self, last_step: int) -> None:
        for first, next_step in self.loop.until(last_step):
            self.hooks.are_open = True
            self.callbacks.on_train_batch_begin(first % self.steps_per_epoch)
            self.loop.call()
            self.logs = self.loop.read_logs()
            self.observe(self.loop.times)
            batch = (next_step - 1) % self.steps_per_epoch
            self.callbacks.on_train_batch_end(batch, dict(self.logs))
            self.hooks.are_open = False
        self.hooks.are_open = True

    def _end_epoch(self, epoch: int) -> None:
        freq, number = self.validation_freq, epoch + 1
        is_due = number % freq == 0 if isinstance(freq, int) else number in freq
        if self.validate is not None and is_due:
            scores = self.validate(callbacks=self.callbacks)
            self.logs |= {f"val_{name}": score for name, score in scores.items()}
        self.callbacks.on_epoch_end(epoch, dict(self.logs))


@contextlib.contextmanager
def _reporting_failures(loop: UpdateLoop) -> Iterator[None]:
    """Reports to the other workers if this one fails between two calls into TensorFlow."""
    try:
        yield
    except (PeerFailed, Stopped, Paused, Regrouping, tf.errors.OpError):
        raise
    except Exception as error:
        if not FAULTS.report_if_fatal(error):
            loop.report_failure(error)
        raise
