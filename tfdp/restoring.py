"""A recipe's model as a checkpoint has it, on all workers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras

from tfdp import checkpoints, feed, keras_private, state
from tfdp.checkpoints import Checkpoint
from tfdp.errors import BadInput
from tfdp.feed import Preprocess
from tfdp.fitting import check_model
from tfdp.order import Order
from tfdp.recipe import Recipe
from tfdp.sources import Source
from tfdp.starting import Data
from tfdp.team import Team


def read(team: Team, workdir: Path, step: int | None) -> Checkpoint:
    """The checkpoint of a step, or the newest, which the chief reads for all.

    Raises:
        BadInput: on every worker, if there is none.
    """
    folder = workdir / "checkpoints"
    found: list[Checkpoint] = []

    def look() -> dict[str, Any]:
        if not folder.is_dir():
            raise BadInput(f"there is no {folder}: --workdir has to be that of a run")
        has = sorted(checkpoints.steps(folder))
        if step is None:
            checkpoint = checkpoints.newest(folder)
        else:
            checkpoint = checkpoints.read(folder, step) if step in has else None
        if checkpoint is None:
            raise BadInput(
                f"{folder} has no sound checkpoint{'' if step is None else f' of step {step}'}: "
                f"it has those of the steps {has}"
            )
        found.append(checkpoint)
        return {"step": checkpoint.step, "about": checkpoint.about}

    told = team.by_chief(look)
    state_bytes = team.broadcast(found[0].state if found else None)
    team.settle()
    return Checkpoint(told["step"], told["about"], state_bytes)


def build(team: Team, recipe: Recipe, checkpoint: Checkpoint | None) -> keras.Model:
    """The recipe's model, in the precision that the checkpoint's run had."""
    precision = "none" if checkpoint is None else checkpoint.about["settings"]["mixed_precision"]
    if precision != "none":
        keras.config.set_dtype_policy(f"mixed_{precision}")
    with team.strategy.scope():
        model = recipe.build_model(recipe.hparams)
    check_model(model)
    return model


def restore(
    model: keras.Model,
    checkpoint: Checkpoint,
    data: Data,
    preprocess: Preprocess | None,
    team: Team,
) -> None:
    """Gives the model the checkpoint's weights, averaged if its optimizer averages (use_ema).

    Args:
        model: of the recipe.
        checkpoint: of that model, or BadInput.
        data: of the recipe; tells what a batch looks like.
        preprocess: of the recipe.
        team: the workers.
    """
    keras_private.build(model, _batch_spec(data, preprocess, team))
    arrays = checkpoint.arrays()
    state.check(model, arrays)
    state.restore(model, team, arrays)
    if model.optimizer:
        model.optimizer.finalize_variable_values(model.trainable_weights)


def _batch_spec(data: Data, preprocess: Preprocess | None, team: Team) -> Any:
    """The spec of a batch as the model sees it."""
    if not isinstance(data, Source):
        return feed.preprocessed(data.batch(1), preprocess).element_spec
    order = Order(len(data), global_batch_size=1, shuffle=False)
    batches = feed.from_source(data, order, team, training=False, preprocess=preprocess)
    return batches.element_spec
