"""Loads a version of a model, and prepares it before it becomes available."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from serving.server.models import base_paths
from serving.server.models.batching_parameters import BatchingParameters
from serving.server.models.saved_model import SavedModel


def loader(
    before_available: Callable[[SavedModel, Path], None] = lambda model, path: None,
    batching: BatchingParameters | None = None,
    observe_batch: Callable[[int], None] = lambda rows: None,
) -> Callable[[Path], SavedModel]:
    """Returns a function that loads the version in a folder.

    Args:
        before_available: gets the loaded model and its folder; an error that it raises fails the
            load.
        batching: how calls are gathered into batches; None runs each call by itself.
        observe_batch: gets the number of rows, padding included, of every batch that was computed;
            called from several threads.
    """

    def load(path: Path) -> SavedModel:
        base_paths.check_is_no_tflite_model(path)
        model = SavedModel(path, batching, observe_batch)
        try:
            before_available(model, path)
        except BaseException:
            model.close()
            raise
        return model

    return load
