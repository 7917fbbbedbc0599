"""``python -m tfdp.evaluate``: a checkpoint or a published version, on a recipe's data."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

from tfdp import aside, evaluation, restoring
from tfdp.errors import BadInput
from tfdp.files import write_whole
from tfdp.log import say_on_chief
from tfdp.publishing import signatures
from tfdp.recipe import Recipe
from tfdp.sources import Source
from tfdp.starting import compare, data_of
from tfdp.team import connect, team_of


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request(aside.Request):
    """The flags of ``python -m tfdp.evaluate``, valid.

    Raises:
        BadInput: if they don't go together, or a value is out of range.
    """

    version: Path | None
    output: Path | None

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.workdir is None) == (self.version is None):
            raise BadInput(
                "give one of --workdir (of a run, for its checkpoint) and --version (the folder "
                "of a published version)"
            )
        if self.step is not None and self.version is not None:
            raise BadInput(f"--step={self.step} is of a run's checkpoint: it goes with --workdir")


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
        checkpoint = restoring.read(team, request.workdir, request.step)
    model = restoring.build(team, recipe, checkpoint)
    data = data_of(recipe, "eval_data")
    preprocess = recipe.preprocess
    if checkpoint is not None:
        assert request.workdir is not None
        restoring.restore(model, checkpoint, data, preprocess, team)
        path = request.workdir / "checkpoints" / str(checkpoint.step)
        about: dict[str, Any] = {"checkpoint": str(path)}
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
        outputs = self._signature(**signatures.as_sent(features))
        if outputs.keys() == {"outputs"}:
            return outputs["outputs"]
        in_order = [f"output_{place}" for place in range(len(outputs))]
        if outputs.keys() == set(in_order):
            return [outputs[name] for name in in_order]
        return outputs
