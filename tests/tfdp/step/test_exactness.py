"""What several replicas can't compute as one replica does is refused, or a message says so."""

from __future__ import annotations

import re
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfdp
from tfdp.step import exactness

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


class Picky(Latest):
    """It takes no made-up numbers."""

    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> None:
        tf.debugging.assert_less(y_true, 0.0)
        super().update_state(y_true, y_pred)


@pytest.mark.parametrize(
    ("metric", "is_reported"), [(Largest, True), (Latest, True), (Total, False), (Picky, False)]
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


def notes_of(
    strategy: Any,
    capsys: pytest.CaptureFixture[str],
    *,
    loss: Any = "mse",
    kind: type[keras.Model] = keras.Model,
    mask: bool = False,
    accumulate_steps: int = 1,
) -> str:
    """The messages about a model that is trained on whole numbers from 0 to 4."""
    with strategy.scope():
        words = keras.layers.Input((3,), dtype="int64")
        embedded = keras.layers.Embedding(5, 2, mask_zero=mask)(words)
        model = kind(words, keras.layers.Dense(1)(embedded))
        model.compile("sgd", loss)
    data = {"x": np.abs(ROWS).astype(np.int64), "y": ROWS[..., None], "batch_size": 6}
    tfdp.fit(model, **data, epochs=2, accumulate_steps=accumulate_steps, verbose=0)
    return "".join(re.findall("tfdp: .*", capsys.readouterr().err))


class OwnLoss(keras.Model):
    def train_step(self, data: Any) -> Any:
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.square(self(data[0], training=True) - data[1]))
        weights = self.trainable_variables
        self.optimizer.apply(tape.gradient(loss, weights), weights)
        return {}


def test_what_is_taken_for_a_mean_is_reported_once(strategies: Any, capsys: Any) -> None:
    strategy = strategies(2)
    assert notes_of(strategy, capsys) == ""
    scalar = notes_of(strategy, capsys, loss=lambda y, p: tf.reduce_mean(tf.square(y - p)))
    assert scalar.count("a loss function returns one number for the whole batch") == 1
    own = notes_of(strategy, capsys, kind=OwnLoss)
    assert own.count("train_step uses no loss of Keras") == 1
    assert notes_of(strategy, capsys, mask=True) == ""
    masked = notes_of(strategy, capsys, mask=True, accumulate_steps=2)
    assert masked.count("each micro-batch divides by its own number") == 1


class WithPenalty(keras.Model):
    """Adds a term of its own to Keras's loss."""

    def compute_loss(self, x: Any, y: Any, y_pred: Any, *rest: Any, **options: Any) -> Any:
        own = 0.1 * tf.reduce_mean(tf.square(y_pred))
        return super().compute_loss(x, y, y_pred, *rest, **options) + own


class HandsPenaltyOver(keras.Model):
    """The same, by add_loss, and a training step of its own."""

    def train_step(self, data: Any) -> Any:
        with tf.GradientTape() as tape:
            prediction = self(data[0], training=True)
            loss = self.compute_loss(data[0], data[1], prediction)
        weights = self.trainable_variables
        self.optimizer.apply(tape.gradient(loss, weights), weights)
        return self.compute_metrics(data[0], data[1], prediction)

    def call(self, *args: Any, **options: Any) -> Any:
        outputs = super().call(*args, **options)
        self.add_loss(0.1 * tf.reduce_mean(tf.square(outputs)))
        return outputs


class SumOfErrors(HandsPenaltyOver):
    def call(self, *args: Any, **options: Any) -> Any:
        return keras.Model.call(self, *args, **options)


@pytest.mark.parametrize(
    ("kind", "loss", "is_reported"),
    [
        (WithPenalty, "mse", True),
        (HandsPenaltyOver, "mse", False),
        (SumOfErrors, keras.losses.MeanSquaredError(reduction="sum"), False),
        (keras.Model, "mse", False),
    ],
)
def test_terms_beside_kerass_losses_are_reported(
    kind: type[keras.Model], loss: Any, is_reported: bool, strategies: Any, capsys: Any
) -> None:
    with strategies(2).scope():
        inputs = keras.layers.Input((3,))
        hidden = keras.layers.BatchNormalization()(keras.layers.Dense(4)(inputs))
        model = kind(inputs, keras.layers.Dense(1)(hidden))
        model.compile("sgd", loss, metrics=["mae"])
    before = model.get_weights()
    exactness.check_own_terms(model, (tf.TensorSpec([None, 3]), tf.TensorSpec([None, 1])))
    np.testing.assert_equal(model.get_weights(), before)
    assert ("adds terms of its own" in capsys.readouterr().err) == is_reported


def test_an_optimizer_without_variables_is_refused(strategies: Any) -> None:
    with strategies(2).scope():
        model = model_of(strategies(2))
        model.second = keras.optimizers.Adam()
    with pytest.raises(tfdp.BadInput, match=r"optimizer adam.* has no variables yet"):
        tfdp.fit(model, ROWS, ROWS[:, :1], verbose=0)
    with strategies(2).scope():
        model.second.build(model.trainable_variables)
    tfdp.fit(model, ROWS, ROWS[:, :1], verbose=0)


def test_accumulate_steps_has_to_be_a_count() -> None:
    model = model_of(tf.distribute.get_strategy())
    with pytest.raises(tfdp.BadInput, match="accumulate_steps is 0: it has to be 1 or more"):
        tfdp.fit(model, ROWS, ROWS[:, :1], accumulate_steps=0)
