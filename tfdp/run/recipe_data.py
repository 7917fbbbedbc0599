"""The data of a recipe: training batches, and evaluation."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from tfdp.data import pipeline
from tfdp.data.order import Order
from tfdp.data.pipeline import Batches
from tfdp.data.preprocessing import Preprocess
from tfdp.data.sources import Data, Source
from tfdp.errors import BadInput
from tfdp.log import say_on_chief
from tfdp.recipe import Recipe
from tfdp.run.settings import TrainSettings, WorkerSettings
from tfdp.trainer import evaluation
from tfdp.whereabouts import READING, marked
from tfdp.workers.collectives import Workers


@dataclasses.dataclass(frozen=True)
class RecipeData:
    """The data of a recipe, single examples.

    Args:
        train: the training data.
        eval: the evaluation data, or None.
        preprocess: the recipe's preprocessing of one example, or None.
    """

    train: Data
    eval: Data | None
    preprocess: Preprocess | None

    def training_batches(
        self, workers: Workers, settings: TrainSettings, first_step: int
    ) -> Batches:
        """Returns the global batches of a run from ``first_step`` on; a collective."""
        if isinstance(self.train, Source):
            order = Order(
                len(self.train),
                settings.global_batch_size,
                settings.seed,
                run_length=self.train.run_length,
            )
            return pipeline.from_source(
                self.train, order, workers, first_step=first_step, preprocess=self.preprocess
            )
        say_on_chief(
            "train_data is a tf.data.Dataset: the order of examples depends on it, and a resumed "
            "run reads the earlier batches again (a tfdp.Source has neither limit)"
        )
        examples = int(self.train.cardinality())
        is_infinite = examples == tf.data.INFINITE_CARDINALITY
        batches = pipeline.from_dataset(
            self.train.batch(settings.global_batch_size),
            workers,
            steps_per_epoch=settings.steps if is_infinite else None,
            first_step=first_step,
            auto_shard=settings.auto_shard,
            preprocess=self.preprocess,
            seed=settings.seed,
        )
        if examples < 1:
            return batches
        order = Order(examples, settings.global_batch_size)  # only to count examples
        return dataclasses.replace(batches, examples_before=order.examples_before)

    def evaluate(
        self,
        model: keras.Model,
        settings: WorkerSettings,
        callbacks: keras.callbacks.CallbackList | None = None,
        between_calls: Callable[[], None] = lambda: None,
    ) -> dict[str, Any]:
        """Evaluates a model on the evaluation data; see ``tfdp.evaluate``."""
        assert self.eval is not None
        data, batch_size = self.eval, settings.global_batch_size
        return evaluation.evaluate_all(
            model,
            data if isinstance(data, Source) else data.batch(batch_size),
            batch_size=batch_size if isinstance(data, Source) else None,
            preprocess=self.preprocess,
            auto_shard=settings.auto_shard,
            callbacks=callbacks,
            between_calls=between_calls,
        )


@marked(READING)  # it may download or count all of it
def data_of(recipe: Recipe) -> RecipeData:
    """Calls the recipe's functions for data; raises BadInput if a result is no data."""
    train = _checked(recipe, "train_data", recipe.train_data(recipe.hparams))
    if recipe.eval_data is None:
        return RecipeData(train, None, recipe.preprocess)
    return RecipeData(train, eval_data_of(recipe), recipe.preprocess)


def eval_data_of(recipe: Recipe) -> Data:
    """Calls the recipe's ``eval_data``; raises BadInput if the result is no data."""
    assert recipe.eval_data is not None
    return _checked(recipe, "eval_data", recipe.eval_data(recipe.hparams))


def data_of_model(recipe: Recipe) -> Data:
    """Returns data with labels, as the model was trained with: ``eval_data``, or ``train_data``.

    Raises:
        BadInput: if the result is no data.
    """
    if recipe.eval_data is not None:
        return eval_data_of(recipe)
    return _checked(recipe, "train_data", recipe.train_data(recipe.hparams))


@marked(READING)
def predict_data_of(recipe: Recipe) -> Data:
    """Calls the recipe's ``predict_data``, or ``eval_data`` if there is none.

    Raises:
        BadInput: if there is neither, or the result is no data.
    """
    if recipe.predict_data is not None:
        return _checked(recipe, "predict_data", recipe.predict_data(recipe.hparams))
    if recipe.eval_data is None:
        raise BadInput(f"recipe {recipe.name} has neither predict_data nor eval_data to predict")
    return eval_data_of(recipe)


def _checked(recipe: Recipe, function: str, data: Any) -> Data:
    if isinstance(data, (Source, tf.data.Dataset)):
        return data
    raise BadInput(
        f"recipe {recipe.name}: {function} returned a {type(data).__name__}, and has to return a "
        "tfdp.Source (tfdp.from_arrays makes one) or a tf.data.Dataset of single examples"
    )
