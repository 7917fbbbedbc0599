"""``python -m tfdp.evaluate``: a checkpoint or a published version, on the recipe's data."""

from __future__ import annotations

import json
from typing import Any

from tfdp.checkpoints.reading import read_of_step
from tfdp.errors import BadInput
from tfdp.files import write_whole
from tfdp.recipe import Recipe
from tfdp.run.published_model import PublishedModel
from tfdp.run.recipe_data import RecipeData, eval_data_of
from tfdp.run.recipe_model import build_model, restore_weights
from tfdp.run.settings import EvaluateSettings
from tfdp.run.startup import meet


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
        checkpoint = read_of_step(workers, settings.workdir, settings.step)
        precision = checkpoint.about["settings"]["mixed_precision"]
    model = build_model(recipe, workers, precision)
    eval_data = eval_data_of(recipe)
    preprocess = recipe.preprocess
    if checkpoint is not None:
        assert settings.workdir is not None
        restore_weights(model, checkpoint, eval_data, preprocess, workers)
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
