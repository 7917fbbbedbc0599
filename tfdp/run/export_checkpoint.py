"""``python -m tfdp.export``: publishes a checkpoint of a run, without training."""

from __future__ import annotations

from typing import Any

from tfdp.checkpoints.reading import read_of_step
from tfdp.errors import BadInput, TrainingError
from tfdp.log import say, say_on_chief
from tfdp.provenance import weights_sha256
from tfdp.publishing import publish_recipe
from tfdp.recipe import Recipe
from tfdp.run.recipe_data import data_of
from tfdp.run.recipe_model import build_model, restore_weights
from tfdp.run.settings import ExportSettings
from tfdp.run.startup import meet
from tfdp.step.metrics import read_metrics


def export(settings: ExportSettings, recipe: Recipe) -> None:
    """Evaluates a checkpoint on all workers, and publishes it from the chief.

    Raises:
        BadInput: on all workers, if there is no such checkpoint or it does not fit the recipe.
        Refused: if the metrics do not meet the conditions for publishing.
    """
    assert settings.workdir is not None
    folder = settings.export_dir or settings.workdir / "model"
    workers = meet(settings, recipe)
    checkpoint = read_of_step(workers, settings.workdir, settings.step)
    about_run = checkpoint.about
    if about_run["settings"]["recipe_sha256"] != recipe.digest:
        say_on_chief("the recipe or a hyperparameter differs from that of the checkpoint's run")
    model = build_model(recipe, workers, about_run["settings"]["mixed_precision"])
    data = data_of(recipe)
    restore_weights(model, checkpoint, data.train, data.preprocess, workers)
    metrics = read_metrics(model)
    evaluated = metrics if data.eval is not None else {}
    names = [name for name, value in evaluated.items() if isinstance(value, (int, float))]
    workers.run_on_chief(
        lambda: publish_recipe.check(folder, settings, recipe, model, data.train, names)
    )
    scores: dict[str, Any] = {}
    if data.eval is not None:
        scores = data.evaluate(model, settings)

    def finish() -> None:
        about = {
            "run": about_run["run"],
            "step": checkpoint.step,
            "weights_sha256": weights_sha256(model),
            "metrics": metrics,
            "eval_metrics": scores,
        }
        path = publish_recipe.publish(folder, settings, recipe, model, data.train, data.eval, about)
        say(f"step {checkpoint.step} is published as {path}")

    try:
        workers.run_on_chief(finish)
    except BadInput as error:  # after the evaluation, it is exit code 1 and not 2
        raise TrainingError(str(error)) from error
    workers.settle()
