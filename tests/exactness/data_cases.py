"""Sizes that don't divide, kinds of data, validation."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import tensorflow as tf

from tests.exactness.registry import (
    BATCH,
    CASES,
    CLASSES,
    ROWS,
    WEIGHTS,
    Case,
    arrays,
    batches,
    case,
    classifier,
)

SIZES = {  # examples and batch size
    "batches_that_replicas_divide": (48, 12),
    "last_batch_of_one": (41, 10),
    "batch_smaller_than_replicas": (7, 2),
    "fewer_examples_than_replicas": (1, 4),
    "batch_larger_than_the_data": (5, 64),
}


def of_size(examples: int, batch_size: int) -> Callable[[], Case]:
    places = np.arange(examples) % len(ROWS)
    data = {"x": ROWS[places], "y": CLASSES[places], "batch_size": batch_size}
    return lambda: Case(classifier(), arrays(**data), predict=True)


for _name, _sizes in SIZES.items():
    CASES[_name] = of_size(*_sizes)


@case
def dataset() -> Case:
    return Case(classifier(), {"x": batches(ROWS, CLASSES, WEIGHTS), "epochs": 2}, predict=True)


@case
def dataset_of_unknown_length() -> Case:
    """Plain Keras is told the length: else it makes an update of nothing after the last batch."""
    kept = batches(ROWS, CLASSES).unbatch().filter(lambda x, y: y < 2).batch(BATCH)
    known = kept.apply(tf.data.experimental.assert_cardinality(-(-np.sum(CLASSES < 2) // BATCH)))
    return Case(classifier(), {"x": known, "epochs": 2}, tfdp={"x": kept}, predict=True)


@case
def repeated_dataset() -> Case:
    data = batches(ROWS, CLASSES).repeat()
    return Case(classifier(), {"x": data, "epochs": 3, "steps_per_epoch": 3})


@case
def dataset_of_full_batches_only() -> Case:
    examples = tf.data.Dataset.from_tensor_slices((ROWS, CLASSES))
    return Case(classifier(), {"x": examples.batch(12, drop_remainder=True), "epochs": 2})


@case
def validation_of_arrays() -> Case:
    others = (ROWS[:19] * 2, CLASSES[:19], WEIGHTS[:19])
    more = {"validation_data": others, "validation_batch_size": 5, "validation_freq": 2}
    return Case(classifier(), arrays(epochs=3, **more))


@case
def validation_of_a_repeated_dataset() -> Case:
    others = batches(ROWS * 2, CLASSES).repeat()
    return Case(classifier(), arrays(validation_data=others, validation_steps=5))


@case
def shuffled_dataset() -> Case:
    examples = tf.data.Dataset.from_tensor_slices((ROWS, CLASSES)).shuffle(
        41, seed=4, reshuffle_each_iteration=False
    )
    return Case(classifier(), {"x": examples.repeat().batch(12), "steps_per_epoch": 8})
