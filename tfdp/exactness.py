"""What several replicas can't compute as one does, found before training."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfdp import state
from tfdp.errors import BadInput
from tfdp.log import say_on_chief

# Losses that are no sums over examples: of sets of all pixels, or of all pairs in a batch.
_OF_SETS = (keras.losses.Dice, keras.losses.Tversky)
_OF_BATCHES = (keras.losses.dice, keras.losses.tversky, keras.losses.circle)  # as functions


def check_losses(model: keras.Model) -> None:
    """Looks at the compiled losses of a model that is to run on several replicas.

    Raises:
        BadInput: for one of Keras's that is computed over a whole batch, which no replica has.
    """
    for loss in _losses(model.loss):
        is_of_sets = isinstance(loss, _OF_SETS) and (loss.axis is None or 0 in _axes(loss.axis))
        if is_of_sets or isinstance(loss, keras.losses.Circle) or loss in _OF_BATCHES:
            name = getattr(loss, "__name__", type(loss).__name__)
            of_each_example = " keras.losses.Dice and Tversky take axis=(1, 2, 3), for images."
            raise BadInput(
                f"the loss is {name}, which is computed over a whole batch, and a replica has a "
                "part of it only: use a loss that has a value for each example, or one replica."
                + (of_each_example if is_of_sets or loss is not keras.losses.circle else "")
            )


def check_metrics(model: keras.Model, batch_spec: Any) -> None:
    """Tells of metrics of the user's own whose states are not sums over examples.

    Replicas' states are added up when a metric is read. A state that is a sum grows by the same
    again when it is given the same batch again; one that is a maximum, or assigned, doesn't.

    Args:
        model: built and compiled; its metrics are reset.
        batch_spec: ``(x[, y[, sample_weight]])`` of ``tf.TensorSpec``, batch dimension first.
    """
    metrics = [each for metric in model.metrics for each in getattr(metric, "metrics", [metric])]
    own = [metric for metric in metrics if not _is_of_keras(metric)]
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
            counts.append(state.metric_rows(model))
            tf.function(lambda: strategy.run(on_replica))()
    except Exception:  # it does not like what was made up: nothing is known then
        return
    finally:
        model.reset_metrics()
    owners = [metric for metric in metrics for _ in metric.variables]
    for metric in own:
        if not all(
            np.allclose(second - first, first - before)
            for owner, before, first, second in zip(owners, *counts, strict=True)
            if owner is metric and np.isfinite(before).all()
        ):
            say_on_chief(
                f"metric {metric.name} keeps something else than sums over examples: replicas' "
                "states are added up, so its value is not what one replica would give"
            )


def _is_of_keras(metric: keras.metrics.Metric) -> bool:
    definer = next(each for each in type(metric).__mro__ if "update_state" in vars(each))
    return definer.__module__.startswith("keras.")


def _made_up(batch_spec: Any) -> Any:
    """Two examples that fit a spec: small random floats, zeros, empty strings."""
    random = np.random.default_rng(0)

    def leaf(spec: tf.TensorSpec) -> tf.Tensor:
        shape = [2, *(1 if size is None else size for size in spec.shape[1:])]
        if spec.dtype.is_floating:
            return tf.cast(random.uniform(0.1, 0.9, shape), spec.dtype)
        return tf.fill(shape, "") if spec.dtype == tf.string else tf.zeros(shape, spec.dtype)

    return tf.nest.map_structure(leaf, batch_spec)


def _losses(given: Any) -> Iterator[Any]:
    """Losses as ``compile`` was given them, names resolved."""
    if isinstance(given, dict):
        given = list(given.values())
    if isinstance(given, (list, tuple)):
        for each in given:
            yield from _losses(each)
    else:
        yield keras.losses.get(given) if isinstance(given, str) else given


def _axes(axis: Any) -> tuple[int, ...]:
    return tuple(axis) if isinstance(axis, (list, tuple)) else (axis,)
