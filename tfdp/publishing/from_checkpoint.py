"""``python -m tfdp.export``: a checkpoint of a run, published without training."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from tfdp import aside, evaluation, restoring, state
from tfdp.errors import BadInput, TrainingError
from tfdp.log import say, say_on_chief
from tfdp.publishing import releasing
from tfdp.publishing.options import PublishSettings
from tfdp.recipe import Recipe
from tfdp.sources import Source
from tfdp.starting import compare, data_of
from tfdp.steps import read_metrics
from tfdp.team import connect, team_of


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request(aside.Request, PublishSettings):
    """The flags of ``python -m tfdp.export``, valid.

    Raises:
        BadInput: if one is missing, or a value is out of range.
    """

    export_dir: Path | None

    def __post_init__(self) -> None:
        PublishSettings.__post_init__(self)
        aside.Request.__post_init__(self)
        if self.workdir is None:
            raise BadInput("--workdir is missing: name the folder of the run that is published")
        if ":/" in str(self.export_dir):
            raise BadInput(
                f"--export_dir is {self.export_dir}: remote paths have no atomic rename; use a "
                "mounted file system"
            )


def publish(request: Request, recipe: Recipe) -> None:
    """Evaluates a checkpoint on all workers, and publishes it from the chief.

    Raises:
        BadInput: on every worker, if there is no such checkpoint or it does not fit the recipe.
        Refused: if the metrics are not what was demanded; nothing is published then.
    """
    assert request.workdir is not None
    folder = request.export_dir or request.workdir / "model"
    team = team_of(connect(request.communication, request.startup_timeout_s))
    here_only = ("workdir", "export_dir", "models_config", "startup_timeout_s")
    shared = {f"--{name}": value for name, value in vars(request).items() if name not in here_only}
    compare(team, shared, recipe)
    checkpoint = restoring.read(team, request.workdir, request.step)
    if checkpoint.about["settings"]["recipe_sha256"] != recipe.digest:
        say_on_chief("the recipe, or a hyperparameter, is not what the checkpoint was trained with")
    model = restoring.build(team, recipe, checkpoint)
    train_data = data_of(recipe, "train_data")
    eval_data = data_of(recipe, "eval_data") if recipe.eval_data is not None else None
    restoring.restore(model, checkpoint, train_data, recipe.preprocess, team)
    metrics = read_metrics(model)()
    evaluated = metrics if eval_data is not None else {}
    names = [name for name, value in evaluated.items() if isinstance(value, (int, float))]
    team.by_chief(lambda: releasing.check(folder, request, recipe, model, train_data, names))

    scores: dict[str, Any] = {}
    if eval_data is not None:
        size = request.global_batch_size
        scores = evaluation.evaluate(
            model,
            eval_data if isinstance(eval_data, Source) else eval_data.batch(size),
            batch_size=size if isinstance(eval_data, Source) else None,
            preprocess=recipe.preprocess,
            auto_shard=request.auto_shard,
        )

    def finish() -> None:
        about = {
            "run": checkpoint.about["run"],
            "step": checkpoint.step,
            "weights_sha256": state.weights_sha256(model),
            "metrics": metrics,
            "eval_metrics": scores,
        }
        path = releasing.publish(folder, request, recipe, model, train_data, eval_data, about)
        say(f"step {checkpoint.step} is published as {path}")

    try:
        team.by_chief(finish)
    except BadInput as error:  # too late to be called so
        raise TrainingError(str(error)) from error
    team.settle()
