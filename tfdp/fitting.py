"""``tfdp.fit``: what ``Model.fit`` does, under any strategy."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfdp import callbacks as callbacks_module
from tfdp import evaluation, exactness, feed, keras_private, state
from tfdp.callbacks import AtSteps
from tfdp.errors import BadInput, PeerFailed, Stopped
from tfdp.exchange import Exchange
from tfdp.feed import Batches
from tfdp.loop import Loop
from tfdp.order import Order
from tfdp.peers import PEERS
from tfdp.sources import Source, as_data
from tfdp.steps import read_metrics
from tfdp.team import Team, cluster_here, team_of
from tfdp.timing import StepTime
from tfdp.words import GradientDtype


def fit(
    model: keras.Model,
    x: Any,
    y: Any = None,
    *,
    batch_size: int | None = None,
    epochs: int = 1,
    verbose: str | int = "auto",
    callbacks: Sequence[keras.callbacks.Callback] | None = None,
    validation_data: Any = None,
    shuffle: bool = True,
    class_weight: Mapping[int, float] | None = None,
    sample_weight: Any = None,
    initial_epoch: int = 0,
    steps_per_epoch: int | None = None,
    validation_steps: int | None = None,
    validation_batch_size: int | None = None,
    validation_freq: int = 1,
    accumulate_steps: int = 1,
    gradient_dtype: GradientDtype = "float32",
    bytes_per_pack: int | None = None,
    seed: int = 0,
) -> keras.callbacks.History:
    """Trains a compiled model on all workers of its strategy, as ``Model.fit`` does on one.

    Every worker calls it with the same arguments. On one replica and on many, the same global
    batches give the same updates.

    Args:
        model: built and compiled in the strategy's scope.
        x: a ``tfdp.Source``, a batched ``tf.data.Dataset`` of ``(features, labels[, weights])``
            whose batches are global batches, or arrays (examples along the first dimension).
        y: labels, where ``x`` is arrays.
        batch_size: examples per update over all replicas, for a source or arrays; 32 by default.
        epochs: the epoch to end before, counted from 0.
        verbose: 0 silent, 1 progress bar, 2 a line for each epoch, on the chief.
        callbacks: Keras callbacks; those of Keras that write act on the chief only.
        validation_data: a source, a batched dataset, or ``(x, y[, sample_weight])`` arrays;
            evaluated at the end of an epoch.
        shuffle: whether a source or arrays get another order in every epoch.
        class_weight: weight of each integer class.
        sample_weight: float[examples], where ``x`` is arrays.
        initial_epoch: the epoch to start with.
        steps_per_epoch: updates in an epoch; needed for a dataset without an end.
        validation_steps: batches of a validation dataset to look at; all by default.
        validation_batch_size: as ``batch_size``, for validation.
        validation_freq: epochs from one validation to the next.
        accumulate_steps: pieces in which each replica computes its part of a batch, to save memory;
            their gradients are added, and all-reduced once.
        gradient_dtype: ``"bfloat16"`` halves what workers send each other: gradients are rounded
            for the all-reduce, and summed in it; those of embeddings are sent as they are.
        bytes_per_pack: the most that one all-reduce of gradients sends; by default chosen from the
            model and the number of replicas.
        seed: makes the order of a source or arrays, with the number of updates that the model has
            had before. Random layers draw from seeds of their own and the number of updates.

    Returns:
        The ``History`` of Keras, equal on all workers.

    Raises:
        BadInput: if the arguments, the model or the data don't fit together.
        PeerFailed: if another worker failed.
    """
    check_model(model)
    exchange = Exchange(gradient_dtype, bytes_per_pack)
    if accumulate_steps < 1:
        raise BadInput(f"accumulate_steps is {accumulate_steps}: it has to be 1 or more")
    team = team_of(model.distribute_strategy)
    if team.workers == 1 and (cluster := cluster_here()) is not None and cluster.size > 1:
        raise BadInput(
            f"TF_CONFIG names {cluster.size} workers, but the model was built outside of their "
            "strategy's scope and would train alone: build and compile it in "
            "`with strategy.scope():`"
        )
    data = as_data(x, y, sample_weight)
    transform = _class_weighted(class_weight)
    updates_before = keras_private.calls(model.optimizer)
    if isinstance(data, Source):
        steps = steps_per_epoch or -(-len(data) // (batch_size or 32))
        first_step = initial_epoch * steps
        # A model that goes on with training sees another order; one that resumes, its own.
        fresh = max(0, updates_before - first_step)
        order = Order(len(data), batch_size or 32, seed + (fresh << 32), shuffle, data.run_length)
        batches = feed.from_source(data, order, team, first_step=first_step, transform=transform)
    elif batch_size is not None:
        raise BadInput(
            f"batch_size is {batch_size}, but a tf.data.Dataset comes in batches already: "
            "batch it by the global batch size and leave batch_size out"
        )
    else:
        batches = feed.from_dataset(
            data, team, steps_per_epoch=steps_per_epoch, transform=transform
        )
        steps = batches.steps_per_epoch
        first_step = initial_epoch * steps

    validate = None
    if validation_data is not None:
        if validation_steps is not None and not isinstance(validation_data, tf.data.Dataset):
            raise BadInput(
                f"validation_steps is {validation_steps}, which is for datasets: "
                "arrays and sources are looked at to their end"
            )
        validate = functools.partial(
            evaluation.evaluate,
            model,
            as_data(*validation_data) if isinstance(validation_data, tuple) else validation_data,
            batch_size=validation_batch_size or batch_size,
            steps=validation_steps,
        )

    return run(
        model,
        batches,
        team,
        steps_per_epoch=steps,
        first_step=first_step,
        last_step=max(epochs * steps, first_step),
        draws_from=max(0, updates_before - first_step),
        accumulate_steps=accumulate_steps,
        exchange=exchange,
        callbacks=callbacks or (),
        verbose=(1 if verbose == "auto" else int(verbose)) if team.is_chief else 0,
        validate=validate,
        validation_freq=validation_freq,
    )


def run(
    model: keras.Model,
    batches: Batches,
    team: Team,
    *,
    steps_per_epoch: int,
    first_step: int,
    last_step: int,
    draws_from: int = 0,
    accumulate_steps: int = 1,
    exchange: Exchange,
    callbacks: Sequence[keras.callbacks.Callback],
    verbose: int = 0,
    validate: Callable[..., dict[str, Any]] | None = None,
    validation_freq: int = 1,
    restore: Callable[[], None] = lambda: None,
    told_to_stop: Callable[[], bool] = lambda: False,
    observe: Callable[[Sequence[StepTime]], None] = lambda times: None,
) -> keras.callbacks.History:
    """Runs updates ``first_step`` to ``last_step`` with callbacks around them.

    Args:
        model: a compiled model; built here if it isn't.
        batches: its batches, from ``first_step`` on.
        team: the workers.
        steps_per_epoch: updates in an epoch.
        first_step: updates done before; may be in the middle of an epoch.
        last_step: updates done at the end; may be in the middle of an epoch.
        draws_from: added to the step that random layers draw from, for a model that was trained
            before.
        accumulate_steps: pieces in which a replica computes its part of a batch.
        exchange: how gradients are summed over replicas.
        callbacks: Keras's and users'; ``AtSteps`` among them act at their own steps.
        verbose: as Keras's progress bar takes it.
        validate: evaluates, given the callback list as ``callbacks``.
        validation_freq: epochs from one validation to the next.
        restore: called when callbacks were told that training begins and, in the middle of an
            epoch, that the epoch does: puts everything back to what it was after ``first_step``.
        told_to_stop: asked between calls into TensorFlow.
        observe: told after each call what steps took on every worker, one call ago.

    Returns:
        Keras's History.

    Raises:
        Stopped: if a worker was told to stop.
        PeerFailed: if another worker failed.
    """
    keras_private.build(model, batches.element_spec)
    if team.replicas > 1:
        state.check_optimizers(model)
        exactness.check_own_terms(model, batches.element_spec)
        exactness.check_metrics(model, batches.element_spec)
    mine = callbacks_module.for_worker(callbacks, team)
    at_steps = [callback for callback in mine if isinstance(callback, AtSteps)]
    everyone = keras.callbacks.CallbackList(
        mine,
        add_history=True,
        add_progbar=verbose != 0,
        verbose=verbose,
        epochs=-(-last_step // steps_per_epoch),
        steps=steps_per_epoch,
        model=model,
    )
    # A run stops where nothing has begun that has not ended: a hook's effect would come twice.
    may_stop = True
    loop = Loop(
        model,
        batches,
        team,
        first_step=first_step,
        draws_from=draws_from,
        accumulate_steps=accumulate_steps,
        exchange=exchange.settled_for(model, team.replicas),
        one_by_one=callbacks_module.want_each_batch(mine),
        told_to_stop=lambda: may_stop and told_to_stop(),
    )
    model.stop_training = False
    logs: dict[str, Any] = {}

    def end_epoch(epoch: int) -> None:
        nonlocal logs
        if validate is not None and (epoch + 1) % validation_freq == 0:
            scores = validate(callbacks=everyone)
            logs |= {f"val_{name}": score for name, score in scores.items()}
        everyone.on_epoch_end(epoch, dict(logs))

    with _faults_shared(loop):
        everyone.on_train_begin()
        if first_step % steps_per_epoch:
            everyone.on_epoch_begin(first_step // steps_per_epoch)
        restore()
        while loop.step < last_step and loop.agree():
            may_stop = False
            epoch, batch = divmod(loop.step, steps_per_epoch)
            if batch == 0:
                model.reset_metrics()
                everyone.on_epoch_begin(epoch)
                loop.agree()  # on what callbacks have set for this epoch
            epoch_end = (epoch + 1) * steps_per_epoch
            stop_at = min(
                [epoch_end, last_step, *(each.next_after(loop.step) for each in at_steps)]
            )
            for first, next_step in loop.until(stop_at):
                may_stop = False
                everyone.on_train_batch_begin(first % steps_per_epoch)
                loop.call()
                logs = read_metrics(model)()
                observe(loop.times)
                everyone.on_train_batch_end((next_step - 1) % steps_per_epoch, dict(logs))
                may_stop = True
            may_stop = False
            loop.agree()  # a callback may have set stop_training on one worker alone
            if loop.step == epoch_end or model.stop_training:
                end_epoch(epoch)
                loop.agree()
            for each in at_steps:
                is_last = loop.step == last_step or model.stop_training
                if is_last or loop.step == each.next_after(loop.step - 1):
                    each.on_step(loop.step, dict(logs))
            may_stop = True
        # All that follows is done again if the run is killed meanwhile.
        if loop.step % steps_per_epoch and not model.stop_training:
            logs = read_metrics(model)()
            end_epoch(loop.step // steps_per_epoch)
        if loop.step and model.optimizer:  # with use_ema, weights become their averages here
            model.optimizer.finalize_variable_values(model.trainable_weights)
        everyone.on_train_end(dict(logs))
        loop.agree()  # others may have failed since
    team.settle()
    return model.history


@contextlib.contextmanager
def _faults_shared(loop: Loop) -> Iterator[None]:
    """Tells the other workers when this one fails between two calls into TensorFlow."""
    try:
        yield
    except (PeerFailed, Stopped, tf.errors.OpError):
        raise
    except Exception as error:
        if not PEERS.share(error):
            loop.tell(error)
        raise


def check_model(model: keras.Model) -> None:
    """Raises BadInput unless it is a compiled model of Keras 3 on TensorFlow."""
    if not isinstance(model, keras.Model):
        raise BadInput(
            f"the model is a {type(model).__module__}.{type(model).__name__}, "
            "and has to be a keras.Model of Keras 3"
        )
    if keras.config.backend() != "tensorflow":
        raise BadInput(
            f"Keras's backend is {keras.config.backend()}, and has to be tensorflow: "
            "set KERAS_BACKEND=tensorflow"
        )
    if not model.compiled:
        raise BadInput("the model is not compiled: call model.compile(…) in the strategy's scope")
    if model.distribute_strategy.num_replicas_in_sync > 1:
        exactness.check_losses(model)


def _class_weighted(class_weight: Mapping[int, float] | None) -> Callable[..., Any] | None:
    """Makes each example's weight its class's, times the weight that it has already."""
    if not class_weight:
        return None
    table = np.ones(max(class_weight) + 2, keras.config.floatx())  # the last for all others
    table[list(class_weight)] = list(class_weight.values())

    @tf.autograph.experimental.do_not_convert
    def weighted(x: Any, y: tf.Tensor, sample_weight: tf.Tensor | None = None) -> Any:
        if tf.nest.is_nested(y):
            raise BadInput(
                "class_weight is for a single output with integer or one-hot labels, and there are "
                "several: use sample_weight"
            )
        one_hot = y.shape.rank == 2 and y.shape[1] != 1
        classes = tf.cast(tf.argmax(y, axis=1) if one_hot else tf.reshape(y, [-1]), tf.int32)
        weights = tf.gather(tf.constant(table), tf.minimum(classes, len(table) - 1))
        if sample_weight is not None:
            weights = weights * tf.cast(sample_weight, weights.dtype)
        return x, y, weights

    return weighted  # type: ignore[no-any-return]
