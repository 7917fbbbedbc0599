"""The outer loop of training: epochs, with callbacks and validation around the updates."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import tensorflow as tf

from tfdp.data.pipeline import Batches
from tfdp.errors import PeerFailed, Stopped
from tfdp.step import exactness, keras_private
from tfdp.step.gradients import GradientAllReduce
from tfdp.step.metrics import read_metrics
from tfdp.step.optimizers import check_optimizers_are_built
from tfdp.trainer import callbacks as callbacks_module
from tfdp.trainer.callbacks import StepCallback
from tfdp.trainer.timing import StepTime
from tfdp.trainer.update_loop import UpdateLoop
from tfdp.workers.collectives import Workers
from tfdp.workers.faults import FAULTS


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
    validation_freq: int = 1,
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
        validation_freq: epochs from one validation to the next.
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
    keras_private.build(model, batches.element_spec)
    if workers.replicas > 1:
        check_optimizers_are_built(model)
        exactness.check_own_terms(model, batches.element_spec)
        exactness.check_metrics(model, batches.element_spec)
    local_callbacks = callbacks_module.for_worker(callbacks, workers)
    step_callbacks = [each for each in local_callbacks if isinstance(each, StepCallback)]
    callback_list = keras.callbacks.CallbackList(
        local_callbacks,
        add_history=True,
        add_progbar=verbose != 0,
        verbose=verbose,
        epochs=-(-last_step // steps_per_epoch),
        steps=steps_per_epoch,
        model=model,
    )
    # A run may stop only between hooks that belong together, or a resumed run repeats their effect.
    is_between_hooks = True
    loop = UpdateLoop(
        model,
        batches,
        workers,
        first_step=first_step,
        draws_from=draws_from,
        accumulate_steps=accumulate_steps,
        all_reduce=all_reduce.with_pack_size(model, workers.replicas),
        one_by_one=callbacks_module.want_each_batch(local_callbacks),
        should_stop=lambda: is_between_hooks and should_stop(),
    )
    model.stop_training = False
    logs: dict[str, Any] = {}

    def end_epoch(epoch: int) -> None:
        nonlocal logs
        if validate is not None and (epoch + 1) % validation_freq == 0:
            scores = validate(callbacks=callback_list)
            logs |= {f"val_{name}": score for name, score in scores.items()}
        callback_list.on_epoch_end(epoch, dict(logs))

    with _faults_shared(loop):
        callback_list.on_train_begin()
        if first_step % steps_per_epoch:
            callback_list.on_epoch_begin(first_step // steps_per_epoch)
        restore()
        while loop.step < last_step and loop.agree():
            is_between_hooks = False
            epoch, batch = divmod(loop.step, steps_per_epoch)
            if batch == 0:
                model.reset_metrics()
                callback_list.on_epoch_begin(epoch)
                loop.agree()  # on what callbacks have set for this epoch
            epoch_end = (epoch + 1) * steps_per_epoch
            next_stop = min(
                [epoch_end, last_step, *(each.next_after(loop.step) for each in step_callbacks)]
            )
            for first, next_step in loop.until(next_stop):
                is_between_hooks = False
                callback_list.on_train_batch_begin(first % steps_per_epoch)
                loop.call()
                logs = read_metrics(model)
                observe(loop.times)
                callback_list.on_train_batch_end((next_step - 1) % steps_per_epoch, dict(logs))
                is_between_hooks = True
            is_between_hooks = False
            loop.agree()  # a callback may have set stop_training on one worker alone
            if loop.step == epoch_end or model.stop_training:
                end_epoch(epoch)
                loop.agree()
            for each in step_callbacks:
                is_last = loop.step == last_step or model.stop_training
                if is_last or loop.step == each.next_after(loop.step - 1):
                    each.action(loop.step)
            is_between_hooks = True
        # If the run is killed from here on, a resumed run repeats all that follows.
        if loop.step % steps_per_epoch and not model.stop_training:
            logs = read_metrics(model)
            end_epoch(loop.step // steps_per_epoch)
        if loop.step and model.optimizer:  # with use_ema, weights become their averages here
            model.optimizer.finalize_variable_values(model.trainable_weights)
        callback_list.on_train_end(dict(logs))
        loop.agree()  # another worker may have failed meanwhile
    workers.settle()
    return model.history


@contextlib.contextmanager
def _faults_shared(loop: UpdateLoop) -> Iterator[None]:
    """Reports to the other workers if this one fails between two calls into TensorFlow."""
    try:
        yield
    except (PeerFailed, Stopped, tf.errors.OpError):
        raise
    except Exception as error:
        if not FAULTS.share(error):
            loop.report_failure(error)
        raise
