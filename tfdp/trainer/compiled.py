"""A compiled model, made ready for its workers: built in the strategy's scope, and checked."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from tfdp.errors import BadInput
from tfdp.log import say_on_chief
from tfdp.step import exactness, keras_private
from tfdp.step.optimizers import check_optimizers_are_built, optimizers
from tfdp.step.per_compile import once_per_compile


def build(model: keras.Model, batch_spec: Any) -> None:
    """Builds a compiled model, whether it was compiled in the strategy's scope or outside of it.

    Where a variable is missing or outside of the scope, it is a collective.

    Args:
        model: a model that was made in the strategy's scope, and compiled.
        batch_spec: ``(x[, y[, sample_weight]])`` of ``tf.TensorSpec``, batch dimension first.
    """
    compiled = optimizers(model)
    keras_private.move_into_scope(model, compiled)
    keras_private.build(model, batch_spec)
    keras_private.move_into_scope(model, compiled)
    _say_what_is_ignored(model)


def build_for_training(model: keras.Model, batch_spec: Any, accumulate_steps: int = 1) -> None:
    """Builds a compiled model, and checks that several replicas can train it.

    Raises:
        BadInput: if they can't; the message names the part of the model.
    """
    replicas = model.distribute_strategy.num_replicas_in_sync
    check_batch_size(model, replicas * accumulate_steps)
    build(model, batch_spec)
    if replicas > 1:
        exactness.check_losses(model)
        check_optimizers_are_built(model)
        exactness.check_own_terms(model, batch_spec)
        exactness.check_metrics(model, batch_spec)


def check_batch_size(model: keras.Model, shares: int) -> None:
    """Raises BadInput if a model fixes its batch size, and a batch is divided into shares."""
    if shares == 1:
        return
    stateful = [each.name for each, _ in keras_private.trainable_of_layers(model) if _keeps(each)]
    if stateful:
        raise BadInput(
            f"layer {stateful[0]} is stateful: it continues each row of a batch where the batch "
            f"before ended, and {shares} replicas or micro-batches get shares of a batch: use "
            "stateful=False, or train in one process"
        )
    sizes = {each.shape[0] for each in tf.nest.flatten(getattr(model, "inputs", None) or [])}
    for size in sizes - {None}:
        raise BadInput(
            f"the model's input has the fixed batch size {size}, and each of {shares} replicas or "
            f"micro-batches gets a share of a batch only, of {size} examples {_share(size, shares)}"
            ": leave the batch size out of the model (keras.Input(shape), without batch_size or "
            "batch_shape)"
        )


def _share(size: int, shares: int) -> str:
    fewest, most = size // shares, -(-size // shares)
    return str(most) if fewest == most else f"{fewest} or {most}"


def _keeps(layer: keras.Layer) -> bool:
    return isinstance(layer, keras.layers.RNN) and bool(layer.stateful)


@once_per_compile
def _say_what_is_ignored(model: keras.Model) -> None:
    if keras_private.asks_for_xla(model):
        say_on_chief("jit_compile=True is ignored: tfdp runs steps without XLA")
    if model.run_eagerly and model.distribute_strategy.num_replicas_in_sync > 1:
        say_on_chief(
            "run_eagerly=True is ignored: several replicas run their steps in graphs. To debug, "
            "run the script in one process without TF_CONFIG"
        )
