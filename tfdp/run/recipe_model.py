"""The model of a recipe: built in the strategy's scope, and with the weights of a checkpoint."""

from __future__ import annotations

from typing import Any

import keras

from tfdp.checkpoints import state
from tfdp.checkpoints.store import Checkpoint
from tfdp.data import pipeline
from tfdp.data.preprocessing import Preprocess, preprocessed
from tfdp.data.sources import Data, Source
from tfdp.recipe import Recipe
from tfdp.step.building import build
from tfdp.trainer.fitting import check_model
from tfdp.workers.collectives import Workers


def build_model(recipe: Recipe, workers: Workers, mixed_precision: str) -> keras.Model:
    """Calls the recipe's ``build_model`` in the strategy's scope; a collective.

    Raises:
        BadInput: if the result is not a compiled Keras model.
    """
    if mixed_precision != "none":
        keras.config.set_dtype_policy(f"mixed_{mixed_precision}")
    with workers.strategy.scope():
        model = recipe.build_model(recipe.hparams)
    workers.settle()  # if the model is wrong on all workers, all are still there to report it
    check_model(model)
    return model


def restore_weights(
    model: keras.Model,
    checkpoint: Checkpoint,
    data: Data,
    preprocess: Preprocess | None,
    workers: Workers,
) -> None:
    """Gives a model the checkpoint's weights; with ``use_ema``, their averages.

    Args:
        model: the recipe's.
        checkpoint: a checkpoint of that model.
        data: the recipe's, from which the shape of a batch follows.
        preprocess: the recipe's.
        workers: the workers.

    Raises:
        BadInput: if the checkpoint is of another model.
    """
    build(model, _batch_spec(data, preprocess, workers))
    state.check(model, checkpoint.places)
    state.restore(model, workers, checkpoint)
    if model.optimizer:
        model.optimizer.finalize_variable_values(model.trainable_weights)


def _batch_spec(data: Data, preprocess: Preprocess | None, workers: Workers) -> Any:
    """Returns the spec of a batch, as the model gets it."""
    if not isinstance(data, Source):
        return preprocessed(data.batch(1), preprocess).element_spec
    return pipeline.in_order(data, 1, workers, preprocess).element_spec
