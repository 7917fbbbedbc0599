"""``tfdp.fit``: trains as ``Model.fit`` does, under any strategy."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Collection, Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfdp.chief import count_workers
from tfdp.choices import GradientDtype
from tfdp.data import pipeline
from tfdp.data.order import Order
from tfdp.data.sources import Source, as_data
from tfdp.errors import BadInput
from tfdp.group import known_group
from tfdp.step import exactness, keras_private
from tfdp.step.gradients import GradientAllReduce
from tfdp.trainer import backup, evaluation
from tfdp.trainer import callbacks as callbacks_module
from tfdp.trainer.epochs import run_epochs
from tfdp.workers.collectives import Workers, workers_of


def fit(
    model: keras.Model,
    x: Any = None,
    y: Any = None,
    batch_size: int | None = None,
    epochs: int = 1,
    verbose: str | int = "auto",
    callbacks: Any = None,
    validation_split: float = 0.0,
    validation_data: Any = None,
    shuffle: bool = True,
    class_weight: Mapping[int, float] | None = None,
    sample_weight: Any = None,
    initial_epoch: int = 0,
    steps_per_epoch: int | None = None,
    validation_steps: int | None = None,
    validation_batch_size: int | None = None,
    validation_freq: int | Collection[int] = 1,
    *,
    accumulate_steps: int = 1,
    gradient_dtype: GradientDtype = "float32",
    bytes_per_pack: int | None = None,
    seed: int = 0,
) -> keras.callbacks.History:
    """Trains a compiled model on all workers of its strategy, as ``Model.fit`` does on one.

    Every worker calls it with the same arguments. The same global batches give the same updates on
    one replica and on many.

    Args:
        model: a compiled model that was built in the strategy's scope.
        x: a ``tfdp.Source``, a batched ``tf.data.Dataset`` of ``(features, labels[, weights])``
            whose batches are global batches, or arrays (examples along the first dimension).
        y: labels, if ``x`` is arrays.
        batch_size: examples per update over all replicas, for a source or arrays; 32 by default.
        epochs: the epoch (from 0) before which training ends; without ``initial_epoch``, the number
            of epochs.
        verbose: 0 prints nothing, 1 a progress bar, 2 one line per epoch; on the chief.
        callbacks: one Keras callback or several; Keras's own that write run on the chief only.
        validation_split: fraction of the arrays, from their end, that is validated on instead of
            trained on, unless ``validation_data`` is given.
        validation_data: a source, a batched dataset, or ``(x, y[, sample_weight])`` arrays, to
            evaluate at the end of an epoch.
        shuffle: whether a source or arrays get a new order in every epoch.
        class_weight: weight of each integer class.
        sample_weight: float[examples], if ``x`` is arrays.
        initial_epoch: index of the epoch to start with.
        steps_per_epoch: updates per epoch; required for an infinite dataset.
        validation_steps: batches of the validation data to evaluate; all by default.
        validation_batch_size: like ``batch_size``, for validation.
        validation_freq: epochs from one validation to the next, or the numbers (from 1) of the
            epochs to validate after.
        accumulate_steps: number of micro-batches in which each replica computes its share of a
            batch, to save memory. Their gradients are added and all-reduced once.
        gradient_dtype: ``"bfloat16"`` halves the bytes that workers send: gradients are rounded and
            summed in bfloat16 during the all-reduce. Gradients of embeddings keep their dtype.
        bytes_per_pack: largest size of one all-reduce of gradients; by default it depends on the
            model and the number of replicas.
        seed: determines the order of a source or arrays, together with the number of updates that
            the model has had before. Random layers draw from their own seeds and the number of
            updates.

    Returns:
        Keras's ``History``, equal on all workers.

    Raises:
        BadInput: if the arguments, the model or the data don't fit together.
        PeerFailed: if another worker failed.
    """
    check_model(model)
    all_reduce = GradientAllReduce(gradient_dtype, bytes_per_pack)
    if accumulate_steps < 1:
        raise BadInput(f"accumulate_steps is {accumulate_steps}: it has to be 1 or more")
    workers = workers_of(model.distribute_strategy)
    _check_scope(workers)
    callbacks = callbacks_module.flat(callbacks)
    if validation_split and validation_data is None:
        (x, y, sample_weight), validation_data = _split((x, y, sample_weight), validation_split)
    data = as_data(x, y, sample_weight, shuffle=shuffle, needs_length=steps_per_epoch is None)
    backed_up_epoch = backup.restore(model, callbacks, workers)
    if backed_up_epoch is not None:
        initial_epoch = backed_up_epoch
    transform = _class_weighting(class_weight)
    updates_before = keras_private.batches_seen(model.optimizer)
    if isinstance(data, Source):
        steps = steps_per_epoch or -(-len(data) // (batch_size or 32))
        first_step = initial_epoch * steps
        # A second `fit` of a model gets another order; one with initial_epoch continues the order.
        earlier_updates = max(0, updates_before - first_step)
        order_seed = seed + (earlier_updates << 32)
        order = Order(len(data), batch_size or 32, order_seed, shuffle, data.run_length)
        batches = pipeline.from_source(
            data, order, workers, first_step=first_step, transform=transform
        )
    else:
        batches = pipeline.from_dataset(
            data, workers, steps_per_epoch=steps_per_epoch, transform=transform
        )
        steps = batches.steps_per_epoch
        first_step = initial_epoch * steps

    validate = None
    if validation_data is not None:
        validate = functools.partial(
            evaluation.evaluate_all,
            model,
            as_data(*validation_data)
            if isinstance(validation_data, (list, tuple))
            else as_data(validation_data),
            batch_size=validation_batch_size or batch_size,
            steps=validation_steps,
        )

    return run_epochs(
        model,
        batches,
        workers,
        steps_per_epoch=steps,
        first_step=first_step,
        last_step=max(epochs * steps, first_step),
        draws_from=max(0, updates_before - first_step),
        accumulate_steps=accumulate_steps,
        all_reduce=all_reduce,
        callbacks=callbacks,
        verbose=(1 if verbose == "auto" else int(verbose)) if workers.is_chief else 0,
        validate=validate,
        validation_freq=validation_freq,
    )


def check_model(model: keras.Model) -> None:
    """Raises BadInput unless ``model`` is a compiled model of Keras 3 on TensorFlow."""
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


def _check_scope(workers: Workers) -> None:
    count = count_workers()
    if workers.count == 1 and count > 1:
        origin = "a ClusterResolver" if known_group() is None else "TF_CONFIG"
        raise BadInput(
            f"{origin} names {count} workers, but the model was built outside of their "
            "strategy's scope and would train alone: build and compile it in "
            "`with strategy.scope():`"
        )


def _split(arrays: Any, validation_split: float) -> tuple[Any, Any]:
    """Returns the first part of all arrays, to train on, and the rest, to validate on."""
    leaves = [leaf for leaf in keras.tree.flatten(arrays) if leaf is not None]
    if any(not hasattr(leaf, "shape") for leaf in leaves):
        kinds = ", ".join(sorted({type(leaf).__name__ for leaf in leaves}))
        raise BadInput(
            f"validation_split is {validation_split}, which divides arrays, and the data is "
            f"{kinds}: divide it yourself, and pass a part as validation_data"
        )
    examples = int(leaves[0].shape[0])
    first = math.floor(examples * (1.0 - validation_split))
    if not 0 < first < examples:
        raise BadInput(
            f"validation_split is {validation_split}: of {examples} examples, {first} would be "
            "left to train on, and both parts have to have at least one"
        )

    def part(places: slice) -> Any:
        return keras.tree.map_structure(lambda leaf: None if leaf is None else leaf[places], arrays)

    return part(slice(first)), part(slice(first, examples))


def _class_weighting(class_weight: Mapping[int, float] | None) -> Callable[..., Any] | None:
    """Returns a transform that multiplies examples' weights by their classes' weights."""
    if not class_weight:
        return None
    table = np.ones(max(class_weight) + 2, keras.config.floatx())  # the last row: other classes
    table[list(class_weight)] = list(class_weight.values())

    @tf.autograph.experimental.do_not_convert
    def weighted(x: Any, y: tf.Tensor, sample_weight: tf.Tensor | None = None) -> Any:
        if tf.nest.is_nested(y):
            raise BadInput(
                "class_weight is for a single output with integer or one-hot labels, and the model "
                "has several: use sample_weight"
            )
        is_one_hot = y.shape.rank == 2 and y.shape[1] != 1
        classes = tf.cast(tf.argmax(y, axis=1) if is_one_hot else tf.reshape(y, [-1]), tf.int32)
        weights = tf.gather(tf.constant(table), tf.minimum(classes, len(table) - 1))
        if sample_weight is not None:
            weights = weights * tf.cast(sample_weight, weights.dtype)
        return x, y, weights

    return weighted  # type: ignore[no-any-return]
