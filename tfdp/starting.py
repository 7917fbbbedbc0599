"""What comes before training or evaluating: workers that are alike, a recipe's data, batches."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

import keras
import tensorflow as tf

import tfdp
from tfdp import feed
from tfdp.data_digest import sha256_of
from tfdp.errors import BadInput
from tfdp.feed import Batches, Preprocess
from tfdp.log import say_on_chief
from tfdp.order import Order
from tfdp.recipe import Recipe
from tfdp.settings import Settings
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


def training_batches(
    data: Data, team: Team, settings: Settings, preprocess: Preprocess | None, first_step: int
) -> Batches:
    """The global batches of a run from ``first_step`` on; a collective for a dataset."""
    if isinstance(data, Source):
        order = Order(
            len(data), settings.global_batch_size, settings.seed, run_length=data.run_length
        )
        return feed.from_source(data, order, team, first_step=first_step, preprocess=preprocess)
    say_on_chief(
        "train_data is a tf.data.Dataset: TensorFlow shards it, the order of examples depends on "
        "it, and a resumed run reads again what it had read (a tfdp.Source has neither limit)"
    )
    examples = int(data.cardinality())
    batches = feed.from_dataset(
        data.batch(settings.global_batch_size),
        team,
        steps_per_epoch=settings.steps if examples == tf.data.INFINITE_CARDINALITY else None,
        first_step=first_step,
        auto_shard=settings.auto_shard,
        preprocess=preprocess,
        seed=settings.seed,
    )
    if examples < 1:
        return batches
    order = Order(examples, settings.global_batch_size)  # for counting alone
    return dataclasses.replace(batches, examples_before=order.examples_before)


def data_sha256(data: Any) -> str | None:
    """What a source says that tells its data from other data; of a dataset, specs and number."""
    if isinstance(data, Source):
        return data.sha256()
    if isinstance(data, tf.data.Dataset):
        return sha256_of(data.element_spec, int(data.cardinality()))
    return None


def versions() -> dict[str, str]:
    """Of what a result depends on."""
    return {
        "tensorflow": tf.__version__,
        "keras": keras.__version__,
        "tfdp": tfdp.__version__,
    }
