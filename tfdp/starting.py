"""What comes before training or evaluating: workers that are alike, and a recipe's data."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

import keras
import tensorflow as tf

import tfdp
from tfdp.errors import BadInput
from tfdp.recipe import Recipe
from tfdp.sources import Source
from tfdp.team import Team

Data: TypeAlias = "Source | tf.data.Dataset"


def compare(team: Team, shared: Mapping[str, Any], recipe: Recipe) -> None:
    """Raises BadInput on every worker unless all were started alike."""
    mine = {**shared, "recipe's sha256": recipe.digest, **versions()}
    mine["--recipe"] = Path(recipe.name).name
    rows = [json.loads(row) for row in team.gather_bytes(json.dumps(mine).encode())]
    team.settle()
    for worker, row in enumerate(rows):
        for name, value in rows[0].items():
            if row[name] != value:
                raise BadInput(
                    f"workers differ: {name} is {value} on worker 0 and {row[name]} on worker "
                    f"{worker}; start all of them with the same command, recipe and packages"
                )


def data_of(recipe: Recipe, name: str) -> Data:
    """What a recipe's function gives as data; BadInput if it is no such thing."""
    data = getattr(recipe, name)(recipe.hparams)
    if isinstance(data, (Source, tf.data.Dataset)):
        return data
    raise BadInput(
        f"recipe {recipe.name}: {name} gave a {type(data).__name__}, and has to give a tfdp.Source "
        "(tfdp.from_arrays makes one) or a tf.data.Dataset of single examples"
    )


def versions() -> dict[str, str]:
    """Of what a result depends on."""
    return {
        "tensorflow": tf.__version__,
        "keras": keras.__version__,
        "tfdp": tfdp.__version__,
    }
