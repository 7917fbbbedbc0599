"""What a case is, and the small data that cases share."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

EXAMPLES = 41
BATCH = 10  # 10, 10, 10, 10 and 1: uneven on 3 and 4 replicas, and fewer than replicas in the end

_random = np.random.default_rng(1)
ROWS = _random.normal(size=(EXAMPLES, 5))
CLASSES = _random.integers(0, 3, EXAMPLES)
NUMBERS = _random.normal(size=(EXAMPLES, 2))
WORDS = _random.integers(0, 20, (EXAMPLES, 6))  # 0 is a mask's
TAGS = _random.integers(0, 4, (EXAMPLES, 6))
IMAGES = _random.random((EXAMPLES, 6, 6, 2))
WEIGHTS = _random.uniform(0, 4, EXAMPLES)

layers, losses, metrics, optimizers = keras.layers, keras.losses, keras.metrics, keras.optimizers


@dataclasses.dataclass(frozen=True)
class Case:
    """A compiled model and how to train it.

    Args:
        model: made in the strategy's scope.
        fit: arguments of ``Model.fit`` and ``tfdp.fit`` alike.
        tfdp: arguments of ``tfdp.fit`` besides, for what plain Keras has no word.
        evaluate: whether scores are compared too.
        predict: whether predictions are.
    """

    model: keras.Model
    fit: dict[str, Any]
    tfdp: dict[str, Any] = dataclasses.field(default_factory=dict)
    evaluate: bool = True
    predict: bool = False


CASES: dict[str, Callable[[], Case]] = {}

# How far results may be apart, relative.
TOLERANCE = 1e-9
TOLERANCES = {
    "float32": 1e-5,
    "mixed_bfloat16": 5e-2,
    "mixed_float16": 2e-2,
    # Keras takes the variance of all replicas as a difference of squares, and of one it doesn't.
    "synchronized_batch_normalization": 1e-8,
}


def case(make: Callable[[], Case]) -> Callable[[], Case]:
    """Registers a case by the name of the function that makes it."""
    CASES[make.__name__] = make
    return make


def classifier(
    optimizer: Any = None, hidden: Any = None, loss: Any = None, **compiling: Any
) -> keras.Model:
    """Five numbers to one of three classes."""
    hidden = hidden or layers.Dense(8, activation="tanh")
    model = keras.Sequential([layers.Input((5,)), hidden, layers.Dense(3)])
    compiling.setdefault("metrics", ["accuracy"])
    model.compile(optimizer or optimizers.Adam(0.02), loss or cross_entropy(), **compiling)
    return model


def cross_entropy(**options: Any) -> keras.losses.Loss:
    return losses.SparseCategoricalCrossentropy(from_logits=True, **options)


def arrays(**more: Any) -> dict[str, Any]:
    return {"x": ROWS, "y": CLASSES, "batch_size": BATCH, "epochs": 2} | more


def batches(*parts: Any, size: int = BATCH) -> tf.data.Dataset:
    given = tuple(
        part.astype(keras.config.floatx()) if part.dtype == float else part for part in parts
    )
    return tf.data.Dataset.from_tensor_slices(given).batch(size)


@contextlib.contextmanager
def precision(policy: str) -> Iterator[None]:
    """Inside the block, models are made under a dtype policy."""
    before = keras.config.floatx(), keras.config.dtype_policy()
    keras.config.set_floatx(policy if policy.startswith("float") else "float32")
    keras.config.set_dtype_policy(policy)
    try:
        yield
    finally:
        keras.config.set_floatx(before[0])
        keras.config.set_dtype_policy(before[1])
