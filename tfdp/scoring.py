"""``python -m tfdp.evaluate``: a checkpoint or a published version, on a recipe's data."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any, get_args

import keras
import tensorflow as tf

from tfdp import checkpoints, evaluation, exporting, feed, keras_private, state
from tfdp.checkpoints import Checkpoint
from tfdp.errors import BadInput
from tfdp.feed import Preprocess
from tfdp.files import write_whole
from tfdp.fitting import check_model
from tfdp.log import say_on_chief
from tfdp.order import Order
from tfdp.recipe import Recipe
from tfdp.sources import Source
from tfdp.starting import Data, compare, data_of
from tfdp.team import Team, connect, team_of
from tfdp.words import AutoShard, Communication


@dataclasses.dataclass(frozen=True)
class Request:
    """The flags of ``python -m tfdp.evaluate``, valid.

    Raises:
        BadInput: if they don't go together, or a value is out of range.
    """

    recipe: str
    workdir: Path | None
    step: int | None
    version: Path | None
    hparam: tuple[str, ...]
    global_batch_size: int
    communication: Communication
    auto_shard: AutoShard
    startup_timeout_s: float
    output: Path | None

    def __post_init__(self) -> None:
        if not self.recipe:
            raise BadInput("--recipe is missing: name a Python file or a dotted module")
        if (self.workdir is None) == (self.version is None):
            raise BadInput(
                "give one of --workdir (of a run, for its checkpoint) and --version (the folder "
                "of a published version)"
            )
        if self.step is not None and self.version is not None:
            raise BadInput(f"--step={self.step} is of a run's checkpoint: it goes with --workdir")
        if self.global_batch_size < 1:
            raise BadInput(
                f"--global_batch_size is {self.global_batch_size}: it has to be 1 or more"
            )
        if not self.startup_timeout_s > 0:
            raise BadInput(
                f"--startup_timeout_s is {self.startup_timeout_s}: it has to be positive"
            )
        for name, choices in (
            ("communication", get_args(Communication)),
            ("auto_shard", get_args(AutoShard)),
        ):
            if getattr(self, name) not in choices:
                raise BadInput(
                    f"--{name} is {getattr(self, name)}: it has to be one of {', '.join(choices)}"
                )


def evaluate(request: Request, recipe: Recipe) -> None:
    """Evaluates on all workers; the chief prints the result, a line of JSON, or writes it.

    Raises:
        BadInput: on every worker, if there is nothing to evaluate or it does not fit the recipe.
    """
    if recipe.eval_data is None:
        raise BadInput(f"recipe {recipe.name} has no eval_data to evaluate on")
    strategy = connect(request.communication, request.startup_timeout_s)
    team = team_of(strategy)
    here_only = ("workdir", "version", "output", "startup_timeout_s")
    shared = {f"--{name}": value for name, value in vars(request).items() if name not in here_only}
    compare(team, shared, recipe)
    checkpoint = None
    if request.workdir is not None:
        folder = request.workdir / "checkpoints"
        checkpoint = _checkpoint(team, folder, request.step)
        precision = checkpoint.about["settings"]["mixed_precision"]
        if precision != "none":
            keras.config.set_dtype_policy(f"mixed_{precision}")
    with strategy.scope():
        model = recipe.build_model(recipe.hparams)
    check_model(model)
    data = data_of(recipe, "eval_data")
    preprocess = recipe.preprocess
    if checkpoint is not None:
        _restore(model, checkpoint, _batch_spec(data, preprocess, team), team)
        about: dict[str, Any] = {"checkpoint": str(folder / str(checkpoint.step))}
    else:
        assert request.version is not None
        with strategy.scope():
            model = Published(request.version, model)
        preprocess = None  # it is in there
        about = {"version": str(request.version)}
    batch_size = request.global_batch_size
    scores = evaluation.evaluate(
        model,
        data if isinstance(data, Source) else data.batch(batch_size),
        batch_size=batch_size if isinstance(data, Source) else None,
        preprocess=preprocess,
        auto_shard=request.auto_shard,
    )
    if team.is_chief:
        text = json.dumps({**about, "workers": team.workers, "eval_metrics": scores})
        if request.output is None:
            print(text, flush=True)
        else:
            write_whole(request.output, text + "\n")


class Published(keras.Model):
    """A published version, asked by its ``serving_default``, judged as the recipe's model is.

    Args:
        path: the version's folder.
        like: a compiled model of the recipe; its losses and metrics are taken.

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
                "a version answers, and no more: regularizers, add_loss and the model's own "
                "test_step, compute_loss and compute_metrics are not in what follows"
            )
        try:
            loaded = tf.saved_model.load(str(path))
            self._signature = loaded.signatures["serving_default"]
        except (OSError, KeyError) as error:
            raise BadInput(
                f"--version={path} can't be loaded: {error}; name the folder of a version, as "
                "in models/digits/3"
            ) from None
        self._loaded = loaded  # or its variables would be gone
        try:
            self.compile_from_config(like.get_compile_config())
        except (TypeError, ValueError) as error:
            raise BadInput(
                f"the recipe's losses and metrics can't be made anew for the version: {error}; "
                "use Keras's, or classes and functions of the recipe's module"
            ) from error

    def call(self, features: Any, training: bool = False) -> Any:
        """The version's outputs, shaped as the model's."""
        outputs = self._signature(**exporting.named(features))
        if outputs.keys() == {"outputs"}:
            return outputs["outputs"]
        in_order = [f"output_{place}" for place in range(len(outputs))]
        if outputs.keys() == set(in_order):
            return [outputs[name] for name in in_order]
        return outputs


def _checkpoint(team: Team, folder: Path, step: int | None) -> Checkpoint:
    """The checkpoint of a step, or the newest, which the chief reads for all."""
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


def _restore(model: keras.Model, checkpoint: Checkpoint, batch_spec: Any, team: Team) -> None:
    """Gives the model the checkpoint's weights, averaged if its optimizer averages (use_ema)."""
    keras_private.build(model, batch_spec)
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
