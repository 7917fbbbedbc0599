"""A recipe's model as a version: what ``tfdp.train`` and ``tfdp.export`` publish alike."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import keras

from tfdp import exporting
from tfdp.errors import BadInput
from tfdp.publishing import servable
from tfdp.publishing.options import PublishSettings
from tfdp.recipe import Recipe
from tfdp.starting import Data, data_sha256


def check(
    folder: Path,
    settings: PublishSettings,
    recipe: Recipe,
    model: keras.Model,
    train_data: Data,
    evaluated: Sequence[str],
) -> None:
    """Finds out, on the chief, what would fail only after training.

    Args:
        folder: the servable's.
        settings: how to publish.
        recipe: whose model it is.
        model: built.
        train_data: what its features are.
        evaluated: names of the numbers that an evaluation gives.

    Raises:
        BadInput: if the model can't be published so.
    """
    settings.demands.check_names(evaluated)
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
    """Publishes, on the chief, unless that run has a version of that step already.

    The step's weights may differ: a callback puts others back when training ends. Then it is
    another version.

    Args:
        folder: the servable's.
        settings: how to publish.
        recipe: whose model it is.
        model: trained.
        train_data: what its features are.
        eval_data: what it was evaluated on, or None.
        about: its ``run``, ``step``, ``weights_sha256``, ``eval_metrics``, and what else
            ``tfdp.json`` shall say.
        confirm: called just before the version appears; if it raises, nothing does.

    Returns:
        The version's folder.

    Raises:
        Refused: if the metrics are not what was demanded.
        TrainingError: if the version does not answer as the model does.
    """
    demands = settings.demands
    of_this = {name: about[name] for name in ("run", "step", "weights_sha256")}
    already = servable.published(folder, of_this)
    if already is not None:
        demands.check(about["eval_metrics"], None, None)  # it may have been published without
        return already
    return exporting.export(
        model,
        folder,
        preprocess=recipe.preprocess,
        features=train_data,
        class_names=_class_names(recipe),
        warmup_batch_sizes=settings.warmup_batch_sizes,
        eval_metrics=about["eval_metrics"],
        require_min=demands.at_least,
        require_max=demands.at_most,
        not_worse_than_current=demands.not_worse_by,
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
            f"recipe {recipe.name}: class_names gave {names!r}, and has to give a list of strings"
        )
    return names
