"""What precedes the first run of a step: its variables, and the rules of its replicas."""

from __future__ import annotations

import functools
from typing import Any

import keras

from tfdp.data.pipeline import Batches
from tfdp.step import exactness
from tfdp.step.building import build
from tfdp.step.rehearsal import EXAMPLES


def prepare_step(
    model: keras.Model, step: str, batches: Batches, accumulate_steps: int = 1
) -> None:
    """Builds a model for a step and finds the rules by which its replicas combine; a collective.

    Args:
        model: a compiled model.
        step: ``"train_step"`` or ``"test_step"``.
        batches: the batches that it will run on.
        accumulate_steps: number of micro-batches in which a replica computes its share.

    Raises:
        BadInput: if replicas can't combine what the step does.
    """

    @functools.cache
    def sample() -> Any:
        return batches.sample(EXAMPLES)

    build(model, batches.element_spec, step=step, sample=sample)
    if model.distribute_strategy.num_replicas_in_sync * accumulate_steps > 1:
        exactness.find_rules(model, step, sample, accumulate_steps=accumulate_steps)
