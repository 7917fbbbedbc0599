"""Checks before training: losses and metrics that several replicas can't compute as one does."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfdp.errors import BadInput
from tfdp.log import say_on_chief
from tfdp.step import keras_private, metrics
from tfdp.step.share import Share

# Losses that are not sums over examples, but over sets of pixels or over pairs within a batch.
_OF_SETS = (keras.losses.Dice, keras.losses.Tversky)
_OF_BATCHES = (keras.losses.dice, keras.losses.tversky, keras.losses.circle)  # as functions
_PROBE_EXAMPLES = 2  # in the made-up batch that models and metrics are tried on


def check_losses(model: keras.Model) -> None:
    """Checks the compiled losses of a model that will run on several replicas.

    Raises:
        BadInput: if one is a loss of Keras over a whole batch, which no replica has.
    """
    for loss in _losses(model.loss):
        is_of_sets = isinstance(loss, _OF_SETS) and (loss.axis is None or 0 in _axes(loss.axis))
        if is_of_sets or isinstance(loss, keras.losses.Circle) or loss in _OF_BATCHES:
            name = getattr(loss, "__name__", type(loss).__name__)
            is_for_images = is_of_sets or loss in (keras.losses.dice, keras.losses.tversky)
            raise BadInput(
                f"the loss is {name}, which is computed over a whole batch, and a replica has only "
                "a share of it: use a loss that has a value for each example, or one replica."
                + (" Keras's Dice and Tversky take axis=(1, 2, 3), for images." * is_for_images)
            )


def check_own_terms(model: keras.Model, batch_spec: Any) -> None:
    """Warns of loss terms that ``train_step`` or ``compute_loss`` adds itself.

    tfdp can't scale them to a share. In a global batch of twice the size, a replica's share of a
    mean is half as large. So doubling the global batch has to halve the gradients, or leave them
    unchanged for a sum. This function tries that on a made-up batch.

    Args:
        model: built and compiled; afterwards it is as before.
        batch_spec: ``(x[, y[, sample_weight]])`` of ``tf.TensorSpec``, batch dimension first.
    """
    overridden = [
        name
        for name in ("train_step", "compute_loss")
        if getattr(type(model), name) is not getattr(keras.Model, name)
    ]
    if not overridden:
        return
    batch = _made_up(batch_spec)
    weights = [(weight, weight.numpy()) for weight in model.non_trainable_variables]
    try:
        once, twice = (_gradients(model, batch, whole=times * _PROBE_EXAMPLES) for times in (1, 2))
    except Exception:  # the made-up batch does not fit the model: nothing is known
        return
    finally:
        model.reset_metrics()
        for weight, value in weights:
            weight.assign(value)
    pairs = [(a.numpy(), b.numpy()) for a, b in zip(once, twice, strict=True)]
    if not any(all(_near(b, factor * a) for a, b in pairs) for factor in (0.5, 1.0)):
        say_on_chief(
            f"{' and '.join(overridden)} adds terms of its own to losses of Keras: on several "
            "replicas they count once for each replica; hand them to self.add_loss, which doesn't"
        )


def _gradients(model: keras.Model, batch: Any, whole: int) -> list[tf.Tensor]:
    """Returns the gradients of one replica's train_step on its share of ``whole`` examples."""
    strategy = model.distribute_strategy
    replica = threading.local()
    losses = keras_private.TracedLosses()
    count = strategy.num_replicas_in_sync

    def keep(gradients: list[Any]) -> None:
        replica.gradients += [tf.convert_to_tensor(each) for each in gradients if each is not None]

    @tf.autograph.experimental.do_not_convert
    def on_replica() -> list[tf.Tensor]:
        replica.gradients = []
        replica.share = Share(
            tf.constant(_PROBE_EXAMPLES), tf.constant(whole), count, may_be_empty=False
        )
        model.train_step(batch)
        return replica.gradients if losses.are_shares else []  # else people are warned anyway

    @tf.function
    def run() -> Any:
        with (
            keras_private.seeds_drawn_from(tf.constant(0, tf.int64)),
            keras_private.reduced_first(keep),
            keras_private.losses_as_shares(losses, lambda: replica.share),
        ):
            return strategy.run(on_replica)

    return [strategy.experimental_local_results(each)[0] for each in run()]


def _near(value: np.ndarray, expected: np.ndarray) -> bool:
    scale = max(1e-6, float(np.abs(expected).max(initial=0)))
    return bool(np.abs(value - expected).max(initial=0) <= 1e-2 * scale)


def check_metrics(model: keras.Model, batch_spec: Any) -> None:
    """Warns of the user's own metrics whose states are not sums over examples.

    Reading a metric adds up the replicas' states. A state that is a sum grows equally each time it
    is updated with the same batch; a maximum, or an assigned state, doesn't.

    Args:
        model: built and compiled; its metrics are reset.
        batch_spec: ``(x[, y[, sample_weight]])`` of ``tf.TensorSpec``, batch dimension first.
    """
    all_metrics = [
        each for metric in model.metrics for each in getattr(metric, "metrics", [metric])
    ]
    own = [metric for metric in all_metrics if not _is_of_keras(metric)]
    if not own:
        return
    strategy = model.distribute_strategy
    x, y, weights = keras.utils.unpack_x_y_sample_weight(_made_up(batch_spec))

    def on_replica() -> None:
        model.compute_metrics(x, y, model(x, training=False), weights)

    counts = []
    try:
        model.reset_metrics()
        for _ in range(3):
            counts.append(metrics.local_metric_states(model))
            tf.function(lambda: strategy.run(on_replica))()
    except Exception:  # the made-up batch does not fit the model: nothing is known
        return
    finally:
        model.reset_metrics()
    owners = [metric for metric in all_metrics for _ in metric.variables]
    for metric in own:
        if not all(
            np.allclose(second - first, first - before)
            for owner, before, first, second in zip(owners, *counts, strict=True)
            if owner is metric and np.isfinite(before).all()
        ):
            say_on_chief(
                f"metric {metric.name} keeps states that are not sums over examples: the replicas' "
                "states are added up, so its value differs from that of one replica"
            )


def _is_of_keras(metric: keras.metrics.Metric) -> bool:
    definer = next(each for each in type(metric).__mro__ if "update_state" in vars(each))
    return definer.__module__.startswith("keras.")


def _made_up(batch_spec: Any) -> Any:
    """Returns a few examples that fit a spec: small random floats, zeros, empty strings."""
    random = np.random.default_rng(0)

    def leaf(spec: tf.TensorSpec) -> tf.Tensor:
        shape = [_PROBE_EXAMPLES, *(1 if size is None else size for size in spec.shape[1:])]
        if spec.dtype.is_floating:
            return tf.cast(random.uniform(0.1, 0.9, shape), spec.dtype)
        return tf.fill(shape, "") if spec.dtype == tf.string else tf.zeros(shape, spec.dtype)

    return tf.nest.map_structure(leaf, batch_spec)


def _losses(given: Any) -> Iterator[Any]:
    """Yields the losses that ``compile`` got, with names resolved."""
    if isinstance(given, dict):
        given = list(given.values())
    if isinstance(given, (list, tuple)):
        for each in given:
            yield from _losses(each)
    else:
        try:
            yield keras.losses.get(given) if isinstance(given, str) else given
        except ValueError as error:
            raise BadInput(f"the loss is {given!r}, which Keras does not know: {error}") from None


def _axes(axis: Any) -> tuple[int, ...]:
    return tuple(axis) if isinstance(axis, (list, tuple)) else (axis,)
