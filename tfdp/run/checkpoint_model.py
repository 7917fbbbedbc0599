"""A recipe's model with the weights of a checkpoint, on all workers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras

from tfdp.checkpoints import state, store
from tfdp.checkpoints.store import Checkpoint
from tfdp.data import pipeline
from tfdp.data.pipeline import Preprocess
from tfdp.data.sources import Data, Source
from tfdp.errors import BadInput
from tfdp.step import keras_private
from tfdp.workers.collectives import Workers


def read(workers: Workers, workdir: Path, step: int | None) -> Checkpoint:
    """Reads the checkpoint of a step, or the newest, on the chief; returns it on all workers.

    Raises:
        BadInput: on all workers, if there is no such checkpoint.
    """
    folder = workdir / "checkpoints"
    found: list[Checkpoint] = []

    def find() -> dict[str, Any]:
        if not folder.is_dir():
            raise BadInput(f"there is no {folder}: --workdir has to be that of a run")
        steps = sorted(store.steps(folder))
        if step is None:
            checkpoint = store.newest(folder)
        else:
            checkpoint = store.read(folder, step) if step in steps else None
        if checkpoint is None:
            raise BadInput(
                f"{folder} has no sound checkpoint{'' if step is None else f' of step {step}'}: "
                f"it has those of the steps {steps}"
            )
        found.append(checkpoint)
        return {"step": checkpoint.step, "about": checkpoint.about}

    header = workers.run_on_chief(find)
    state_bytes = workers.broadcast(found[0].state if found else None)
    workers.settle()
    return Checkpoint(header["step"], header["about"], state_bytes)


def restore(
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
    keras_private.build(model, _batch_spec(data, preprocess, workers))
    arrays = checkpoint.arrays()
    state.check(model, arrays)
    state.restore(model, workers, arrays)
    if model.optimizer:
        model.optimizer.finalize_variable_values(model.trainable_weights)


def _batch_spec(data: Data, preprocess: Preprocess | None, workers: Workers) -> Any:
    """Returns the spec of a batch, as the model gets it."""
    if not isinstance(data, Source):
        return pipeline.preprocessed(data.batch(1), preprocess).element_spec
    batches, _ = pipeline.in_order(data, 1, workers, preprocess)
    return batches.element_spec
