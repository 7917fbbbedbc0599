"""A compiled model, made ready for its workers: built in the strategy's scope, and checked."""

from __future__ import annotations

import functools
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfdp.data.pipeline import Batches
from tfdp.data.replica_batch import count_rows, take_rows
from tfdp.errors import BadInput
from tfdp.log import say_on_chief
from tfdp.step import exactness, keras_private
from tfdp.step.building import build
from tfdp.step.per_compile import keep, kept
from tfdp.step.rules import kept_rules
from tfdp.step.stage import EXAMPLES
from tfdp.workers.collectives import workers_of

_ALL = 1 << 30  # examples, more than any batch has


def prepare(model: keras.Model, step: str, batches: Batches, accumulate_steps: int = 1) -> None:
    """Builds a compiled model for a step, and finds the rules by which its replicas combine.

    Args:
        model: a model that was made in the strategy's scope, and compiled.
        step: ``"train_step"`` or ``"test_step"``.
        batches: the batches that it will run on.
        accumulate_steps: number of micro-batches in which a replica computes its share.

    Raises:
        BadInput: if replicas can't do what the step does; the message names it.
    """
    shares = model.distribute_strategy.num_replicas_in_sync * accumulate_steps
    check_batch_size(model, shares)

    @functools.cache
    def sample() -> Any:
        return batches.sample(EXAMPLES)

    def share() -> Any:  # of the first replica or micro-batch
        batch = batches.sample(_ALL)
        return take_rows(batch, 0, max(1, int(count_rows(batch)) // shares))

    build(model, batches.element_spec, step=step, sample=sample, share=share)
    _say_what_is_ignored(model)
    if shares > 1:
        exactness.check_losses(model)
        exactness.find_rules(model, step, sample, share, accumulate_steps=accumulate_steps)
        _check_rules_are_alike(model, step)


def _check_rules_are_alike(model: keras.Model, step: str) -> None:
    """Raises BadInput, on all workers, if they found different rules; a collective."""
    workers = workers_of(model.distribute_strategy)
    rules = kept_rules(model, step)
    if rules is None or not workers.gather(np.array([rules.is_rehearsed], np.int32)).any():
        return
    described = workers.gather_bytes(rules.described().encode())
    if len(set(described)) > 1:
        workers.settle()
        raise BadInput(
            f"{step} computed different things on the workers, for the same few examples: it has "
            "to be the same program on all of them, whichever worker runs it"
        )


def check_batch_size(model: keras.Model, shares: int) -> None:
    """Raises BadInput if a model fixes its batch size, and a batch is divided into shares."""
    if shares == 1:
        return
    stateful = [each.name for each in keras_private.layers(model) if _keeps(each)]
    if stateful:
        raise BadInput(
            f"layer {stateful[0]} is stateful: it continues each row of a batch where the batch "
            f"before ended, and {shares} replicas or micro-batches get shares of a batch: use "
            "stateful=False, or train in one process"
        )
    sizes = {each.shape[0] for each in tf.nest.flatten(getattr(model, "inputs", None) or [])}
    for size in sizes - {None}:
        raise BadInput(
            f"the model's input has the fixed batch size {size}, and each of {shares} replicas or "
            f"micro-batches gets a share of a batch only, of {size} examples {_share(size, shares)}"
            ": leave the batch size out of the model (keras.Input(shape), without batch_size or "
            "batch_shape)"
        )


def _share(size: int, shares: int) -> str:
    fewest, most = size // shares, -(-size // shares)
    return str(most) if fewest == most else f"{fewest} or {most}"


def _keeps(layer: keras.Layer) -> bool:
    return isinstance(layer, keras.layers.RNN) and bool(layer.stateful)


def _say_what_is_ignored(model: keras.Model) -> None:
    if kept(model, "said_what_is_ignored"):
        return
    keep(model, "said_what_is_ignored", True)
    if keras_private.asks_for_xla(model):
        say_on_chief("jit_compile=True is ignored: tfdp runs steps without XLA")
    if model.run_eagerly and model.distribute_strategy.num_replicas_in_sync > 1:
        say_on_chief(
            "run_eagerly=True is ignored: several replicas run their steps in graphs. To debug, "
            "run the script in one process without TF_CONFIG"
        )
