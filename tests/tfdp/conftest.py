"""Four replicas in one process: MirroredStrategy over logical CPU devices."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import pytest
import tensorflow as tf

REPLICAS = (1, 2, 3, 4)

# At import: once anything has used TensorFlow, its devices can't be divided any more.
tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0],
    [tf.config.LogicalDeviceConfiguration() for _ in range(max(REPLICAS))],
)

Strategies = Callable[[int], tf.distribute.Strategy]


@pytest.fixture(scope="session")
def strategies() -> Strategies:
    """A strategy of as many replicas as asked for, the same one each time."""
    made = {1: tf.distribute.get_strategy()}

    def strategy(replicas: int) -> tf.distribute.Strategy:
        if replicas not in made:
            # One size only can use collectives, whose groups TensorFlow numbers alike.
            reduction = None if replicas == 2 else tf.distribute.ReductionToOneDevice()
            made[replicas] = tf.distribute.MirroredStrategy(
                [f"CPU:{i}" for i in range(replicas)], cross_device_ops=reduction
            )
        return made[replicas]

    return strategy


@pytest.fixture(scope="session")
def workers(strategies: Strategies) -> Callable[[int], object]:
    """The workers of as many replicas as asked for."""
    from tfdp.workers.collectives import workers_of

    return lambda replicas: workers_of(strategies(replicas))


@pytest.fixture
def float64() -> Iterator[None]:
    """Everything that Keras computes, in double precision: rounding is then no excuse."""
    keras.config.set_floatx("float64")
    keras.config.set_dtype_policy("float64")
    yield
    keras.config.set_floatx("float32")
    keras.config.set_dtype_policy("float32")


@pytest.fixture
def reloaded_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """The program of the fresh process that asks a new version, run in this one: it is quicker."""
    from tfdp.publishing import load_check, load_check_process

    def here(version: Path, answers: Path, questions: Sequence[Path]) -> None:
        load_check_process.main(str(version), str(answers), [str(path) for path in questions])

    monkeypatch.setattr(load_check, "_in_fresh_process", here)
