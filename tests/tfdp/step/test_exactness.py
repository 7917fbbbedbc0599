"""What several replicas can't compute as one replica does is refused, or a message says so."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfdp

IMAGES = np.random.default_rng(1).random((8, 4, 4, 1), np.float32)
ROWS = np.random.default_rng(2).normal(size=(12, 3)).astype(np.float32)


def model_of(strategy: tf.distribute.Strategy, **compiling: Any) -> keras.Model:
    with strategy.scope():
        model = keras.Sequential([keras.layers.Input((3,)), keras.layers.Dense(1)])
        model.compile(**{"optimizer": "sgd", "loss": "mse"} | compiling)
    return model


@pytest.mark.parametrize(
    ("loss", "name"),
    [
        (keras.losses.Dice, "Dice"),
        (lambda: keras.losses.Tversky(axis=(0, 1)), "Tversky"),
        (lambda: "dice", "dice"),
        (lambda: {"output": keras.losses.tversky}, "tversky"),
        (lambda: [keras.losses.Circle()], "Circle"),
    ],
)
def test_a_loss_over_a_whole_batch_is_refused(loss: Any, name: str, strategies: Any) -> None:
    with strategies(2).scope():
        inputs = keras.layers.Input((4, 4, 1))
        outputs = keras.layers.Conv2D(1, 1, activation="sigmoid", name="output")(inputs)
        model = keras.Model(inputs, outputs)
        model.compile("sgd", loss())
    before = model.get_weights()
    with pytest.raises(tfdp.BadInput, match=f"the loss is {name}, .* or one replica"):
        tfdp.fit(model, IMAGES, IMAGES, verbose=0)
    np.testing.assert_equal(model.get_weights(), before)


def test_on_one_replica_it_is_not(strategies: Any) -> None:
    model = keras.Sequential([keras.layers.Input((4, 4, 1)), keras.layers.Conv2D(1, 1)])
    model.compile("sgd", keras.losses.Dice())
    tfdp.fit(model, IMAGES, IMAGES, verbose=0)


class Largest(keras.metrics.Metric):
    """Its state is a maximum, not a sum."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.largest = self.add_variable((), "zeros", name="largest")

    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> None:
        self.largest.assign(tf.maximum(self.largest, tf.reduce_max(tf.abs(y_true - y_pred))))

    def result(self) -> Any:
        return self.largest


class Latest(Largest):
    """Its state is assigned."""

    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> None:
        self.largest.assign(tf.reduce_mean(y_pred))


class Total(Largest):
    """Its state is a sum."""

    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> None:
        self.largest.assign_add(tf.reduce_sum(y_pred))


@pytest.mark.parametrize(
    ("metric", "is_reported"), [(Largest, True), (Latest, True), (Total, False)]
)
def test_a_metric_whose_states_are_no_sums_is_reported_of(
    metric: type[Largest], is_reported: bool, strategies: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    with strategies(2).scope():
        metrics = [metric(name="mine"), "mae"]
    model = model_of(strategies(2), metrics=metrics)
    tfdp.fit(model, ROWS, -np.ones((12, 1)), epochs=2, batch_size=6, verbose=0)
    message = "metric mine keeps states that are not sums over examples"
    assert (message in capsys.readouterr().err) == is_reported


def test_micro_batches_with_denominators_of_their_own_are_reported_once(
    strategies: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    with strategies(2).scope():
        words = keras.layers.Input((3,), dtype="int64")
        embedded = keras.layers.Embedding(5, 2, mask_zero=True)(words)
        model = keras.Model(words, keras.layers.Dense(1)(embedded))
        model.compile("sgd", "mse")
    data = {"x": np.abs(ROWS).astype(np.int64), "y": ROWS[..., None], "batch_size": 6, "verbose": 0}
    tfdp.fit(model, **data)
    assert "tfdp: " not in capsys.readouterr().err
    tfdp.fit(model, **data, epochs=2, accumulate_steps=2)
    assert capsys.readouterr().err.count("each micro-batch divides by its own number") == 1


def test_accumulate_steps_has_to_be_a_count() -> None:
    model = model_of(tf.distribute.get_strategy())
    with pytest.raises(tfdp.BadInput, match="accumulate_steps is 0: it has to be 1 or more"):
        tfdp.fit(model, ROWS, ROWS[:, :1], accumulate_steps=0)
