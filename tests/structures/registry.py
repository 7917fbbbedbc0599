"""What a structure is, and the small data that structures share."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tests.structures.trial import Trial

EXAMPLES = 21
BATCH = 8  # 8, 8 and 5: 2 and 3 workers have unequal shares

_random = np.random.default_rng(7)
ROWS = _random.normal(size=(EXAMPLES, 5))
CLASSES = _random.integers(0, 3, EXAMPLES)
NUMBERS = _random.normal(size=(EXAMPLES, 2))
BITS = _random.integers(0, 2, (EXAMPLES, 1)).astype(float)
IMAGES = _random.random((EXAMPLES, 8, 8, 2))
NOISE = _random.normal(size=(EXAMPLES, 4))
LENGTHS = _random.integers(2, 7, EXAMPLES)
WORDS = np.where(np.arange(6) < LENGTHS[:, None], _random.integers(1, 12, (EXAMPLES, 6)), 0)
TEXTS = np.array([" ".join(f"w{word}" for word in row if word) for row in WORDS], dtype=object)
SERIES = _random.normal(size=(EXAMPLES, 6, 3))


@dataclasses.dataclass(frozen=True)
class Structure:
    """Code that trains, and where people find its like.

    Args:
        train: makes a model in ``trial.scope()`` and trains it by ``trial.fit``.
        family: heading in the table.
        source: the guide, example or tutorial that has this structure.
        asks: what it needs of a framework.
        tolerance: how far results may be apart, relative.
        is_random: it draws numbers, which can't be equal on N workers: it has to train, and workers
            have to draw different ones.
    """

    train: Callable[[Trial], None]
    family: str
    source: str
    asks: str
    tolerance: float
    is_random: bool


STRUCTURES: dict[str, Structure] = {}


def structure(
    source: str, asks: str, *, tolerance: float = 1e-9, is_random: bool = False
) -> Callable[[Callable[[Trial], None]], Callable[[Trial], None]]:
    """Registers a structure by the name of the function that trains it."""

    def register(train: Callable[[Trial], None]) -> Callable[[Trial], None]:
        family = train.__module__.rpartition(".")[2].replace("_", " ")
        made = Structure(train, family, source, asks, tolerance, is_random)
        assert STRUCTURES.setdefault(train.__name__, made) is made, train.__name__
        return train

    return register


def batches(*parts: Any, size: int = BATCH) -> tf.data.Dataset:
    """A dataset of tuples, or of features alone."""
    return tf.data.Dataset.from_tensor_slices(parts if len(parts) > 1 else parts[0]).batch(size)


def cross_entropy(**options: Any) -> keras.losses.Loss:
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True, **options)


def dense(*sizes: int, inputs: int = 5, last: str | None = None) -> keras.Sequential:
    """A small network of dense layers."""
    hidden = [keras.layers.Dense(size, activation="tanh") for size in sizes[:-1]]
    return keras.Sequential(
        [keras.layers.Input((inputs,)), *hidden, keras.layers.Dense(sizes[-1], activation=last)]
    )
