"""``python -m tfdp.evaluate``: a checkpoint or a published version, on the recipe's data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

from tfdp.errors import BadInput
from tfdp.files import write_whole
from tfdp.log import say_on_chief
from tfdp.publishing.features import to_inputs
from tfdp.recipe import Recipe
from tfdp.run import checkpoint_model
from tfdp.run.recipe_data import RecipeData, eval_data_of
from tfdp.run.settings import EvaluateSettings
from tfdp.run.startup import build_model, meet


def evaluate(settings: EvaluateSettings, recipe: Recipe) -> None:
    """Evaluates on all workers; the chief prints the result, a line of JSON, or writes it.

    Raises:
        BadInput: on all workers, if there is nothing to evaluate or it does not fit the recipe.
    """
    if recipe.eval_data is None:
        raise BadInput(f"recipe {recipe.name} has no eval_data to evaluate on")
    workers = meet(settings, recipe)
    checkpoint = None
    precision = "none"
    if settings.workdir is not None:
        checkpoint = checkpoint_model.read(workers, settings.workdir, settings.step)
        precision = checkpoint.about["settings"]["mixed_precision"]
    model = build_model(recipe, workers, precision)
    eval_data = eval_data_of(recipe)
    preprocess = recipe.preprocess
    if checkpoint is not None:
        assert settings.workdir is not None
        checkpoint_model.restore(model, checkpoint, eval_data, preprocess, workers)
        path = settings.workdir / "checkpoints" / str(checkpoint.step)
        about: dict[str, Any] = {"checkpoint": str(path)}
    else:
        assert settings.version is not None
        with workers.strategy.scope():
            model = PublishedModel(settings.version, model)
        preprocess = None  # the version contains it
        about = {"version": str(settings.version)}
    scores = RecipeData(eval_data, eval_data, preprocess).evaluate(model, settings)
    if workers.is_chief:
        text = json.dumps({**about, "workers": workers.count, "eval_metrics": scores})
        if settings.output is None:
            print(text, flush=True)
        else:
            write_whole(settings.output, text + "\n")


class PublishedModel(keras.Model):
    """A published version, called by its ``serving_default``, with losses and metrics of a model.

    Args:
        path: folder of the version.
        like: a compiled model of the recipe; its losses and metrics are used.

    Raises:
        BadInput: if there is no such version.
    """

    def __init__(self, path: Path, like: keras.Model) -> None:
        super().__init__()
        if like.losses or any(
            getattr(type(like), name) is not getattr(keras.Model, name)
            for name in ("test_step", "compute_loss", "compute_metrics")
        ):
            say_on_chief(
                "a version only computes outputs: the result leaves out regularizers, add_loss and "
                "the model's own test_step, compute_loss and compute_metrics"
            )
        try:
            loaded = tf.saved_model.load(str(path))
            self._signature = loaded.signatures["serving_default"]
        except (OSError, KeyError) as error:
            raise BadInput(
                f"--version={path} can't be loaded: {error}; name the folder of a version, as "
                "in models/digits/3"
            ) from None
        self._loaded = loaded  # its variables live as long as it does
        try:
            self.compile_from_config(like.get_compile_config())
        except (TypeError, ValueError) as error:
            raise BadInput(
                f"the recipe's losses and metrics can't be created again for the version: {error}; "
                "use Keras's, or classes and functions of the recipe's module"
            ) from error

    def call(self, features: Any, training: bool = False) -> Any:
        """Returns the version's outputs, in the structure of the model's."""
        outputs = self._signature(**to_inputs(features))
        if outputs.keys() == {"outputs"}:
            return outputs["outputs"]
        in_order = [f"output_{place}" for place in range(len(outputs))]
        if outputs.keys() == set(in_order):
            return [outputs[name] for name in in_order]
        return outputs
