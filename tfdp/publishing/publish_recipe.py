"""Publishing a recipe's model: what ``tfdp.train`` and ``tfdp.export`` have in common."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import keras

from tfdp.data.sources import Data, data_sha256
from tfdp.errors import BadInput, Refused
from tfdp.publishing import exporting, servable
from tfdp.publishing.settings import PublishSettings
from tfdp.recipe import Recipe


def check(
    folder: Path,
    settings: PublishSettings,
    recipe: Recipe,
    model: keras.Model,
    train_data: Data,
    evaluated: Sequence[str],
) -> None:
    """Checks before training, on the chief, what would fail when the model is published.

    Args:
        folder: folder of the servable.
        settings: flags about publishing.
        recipe: the recipe.
        model: its built model.
        train_data: its training data, whose features the version will take.
        evaluated: names of the numeric metrics of an evaluation.

    Raises:
        BadInput: if the model can't be published in this way.
    """
    settings.gates.check_names(evaluated)
    exporting.check(
        model,
        folder,
        preprocess=recipe.preprocess,
        features=train_data,
        class_names=_class_names(recipe),
        models_config=settings.models_config,
    )


def publish(
    folder: Path,
    settings: PublishSettings,
    recipe: Recipe,
    model: keras.Model,
    train_data: Data,
    eval_data: Data | None,
    about: Mapping[str, Any],
    confirm: Callable[[], None] | None = None,
) -> Path:
    """Publishes on the chief, unless a version of the same run, step and weights exists.

    One step can have different weights, because a callback may restore its best ones at the end.
    Different weights are a different version.

    Args:
        folder: folder of the servable.
        settings: flags about publishing.
        recipe: the recipe.
        model: its trained model.
        train_data: its training data, whose features the version takes.
        eval_data: its evaluation data, or None.
        about: ``run``, ``step``, ``weights_sha256``, ``eval_metrics``, and more for ``tfdp.json``.
        confirm: called just before the version appears; if it raises, the version does not appear.

    Returns:
        Folder of the version.

    Raises:
        Refused: if the metrics or the weights do not meet the conditions for publishing.
        TrainingError: if the version answers differently from the model.
    """
    gates = settings.gates
    if settings.require_weights not in ("", about["weights_sha256"]):
        raise Refused(
            f"not published: the weights' sha256 is {about['weights_sha256']}, and has to be "
            f"{settings.require_weights} (--require_weights)"
        )
    of_this = {name: about[name] for name in ("run", "step", "weights_sha256")}
    already = servable.published(folder, of_this)
    if already is not None:
        # It may have been published without these gates.
        gates.check(about["eval_metrics"], None, None)
        return already
    return exporting.export(
        model,
        folder,
        preprocess=recipe.preprocess,
        features=train_data,
        class_names=_class_names(recipe),
        warmup_batch_sizes=settings.warmup_batch_sizes,
        eval_metrics=about["eval_metrics"],
        require_min=gates.at_least,
        require_max=gates.at_most,
        not_worse_than_current=gates.not_worse_by,
        keep=settings.keep_versions,
        models_config=settings.models_config,
        about={
            "recipe": recipe.name,
            "recipe_sha256": recipe.digest,
            "eval_data_sha256": data_sha256(eval_data),
            **about,
        },
        confirm=confirm,
    )


def _class_names(recipe: Recipe) -> Sequence[str] | None:
    if recipe.class_names is None:
        return None
    names = recipe.class_names(recipe.hparams)
    if not isinstance(names, (list, tuple)) or not all(isinstance(name, str) for name in names):
        raise BadInput(
            f"recipe {recipe.name}: class_names returned {names!r}, and has to return a list of "
            "strings"
        )
    return names
