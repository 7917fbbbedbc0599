"""``python -m tfdp.predict``: predictions of a checkpoint or a published version, in a folder."""

from __future__ import annotations

import contextlib
import hashlib
from pathlib import Path
from typing import Any

import keras

from tfdp.checkpoints.reading import read_of_step
from tfdp.data.sources import Data, Source
from tfdp.provenance import weights_sha256
from tfdp.publishing.servable import read_provenance
from tfdp.recipe import Recipe
from tfdp.run.published_model import PublishedModel
from tfdp.run.recipe_data import data_of_model, predict_data_of
from tfdp.run.recipe_model import build_model, restore_weights
from tfdp.run.settings import PredictSettings
from tfdp.run.startup import meet
from tfdp.trainer.batch_prediction import predict_into
from tfdp.trainer.prediction_folder import PredictionFolder
from tfdp.workers.collectives import Workers

_HASHED_BYTES = 1 << 20  # at a time


def predict(settings: PredictSettings, recipe: Recipe) -> None:
    """Predicts on all workers; the same call goes on where an earlier one was killed.

    Raises:
        BadInput: on all workers, if there is nothing to predict or it does not fit.
        TrainingError: if a part can't be written.
    """
    workers = meet(settings, recipe)
    with contextlib.closing(PredictionFolder(settings.output, settings.format, workers)) as folder:
        data = predict_data_of(recipe)
        if settings.version is None:
            model, about = _of_checkpoint(settings, recipe, workers, data)
        else:
            with workers.strategy.scope():
                model = PublishedModel(settings.version, None)
            provenance = read_provenance(settings.version) or {}
            of_version = {"weights_sha256": provenance.get("weights_sha256")}
            about = {"version": str(settings.version), **of_version}

        def identity() -> dict[str, Any]:
            model_of = {"recipe_sha256": recipe.digest}
            if settings.version is not None:
                return {**model_of, "version_sha256": _version_sha256(settings.version)}
            return {**model_of, "step": about["step"], "weights_sha256": weights_sha256(model)}

        batch_size = settings.global_batch_size
        predict_into(
            folder,
            model,
            data if isinstance(data, Source) else data.batch(batch_size),
            identity=identity,
            about=about,
            batch_size=batch_size,
            preprocess=recipe.preprocess if settings.version is None else None,
            batches_per_part=settings.batches_per_part,
        )


def _of_checkpoint(
    settings: PredictSettings, recipe: Recipe, workers: Workers, data: Data
) -> tuple[keras.Model, dict[str, Any]]:
    """Returns the recipe's model with the weights of a checkpoint, and what to note about it."""
    assert settings.workdir is not None
    checkpoint = read_of_step(workers, settings.workdir, settings.step)
    model = build_model(recipe, workers, checkpoint.about["settings"]["mixed_precision"])
    # Data to predict may lack labels, with which metrics and optimizers are built.
    of_model = data if recipe.predict_data is None else data_of_model(recipe)
    restore_weights(model, checkpoint, of_model, recipe.preprocess, workers)
    path = settings.workdir / "checkpoints" / str(checkpoint.step)
    return model, {"checkpoint": str(path), "step": checkpoint.step}


def _version_sha256(version: Path) -> str:
    """Returns the sha256 of the files that TensorFlow reads of a version."""
    digest = hashlib.sha256()
    folders = [version / "variables", version / "assets"]
    paths = [path for folder in folders for path in sorted(folder.rglob("*")) if path.is_file()]
    for path in [version / "saved_model.pb", *paths]:
        digest.update(f"{path.relative_to(version)}:{path.stat().st_size};".encode())
        with path.open("rb") as file:
            while data := file.read(_HASHED_BYTES):
                digest.update(data)
    return digest.hexdigest()
