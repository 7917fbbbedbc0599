"""``tf.random`` in users' layers: replicas and steps draw apart, and a run repeats."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import ops

import tfdp

DRAWS: dict[str, Callable[[Any], Any]] = {
    "normal": lambda x: tf.random.normal(tf.shape(x)),
    "uniform": lambda x: tf.random.uniform(tf.shape(x), -1.0, 1.0),
    "truncated_normal": lambda x: tf.random.truncated_normal(tf.shape(x), stddev=2.0, seed=3),
    "categorical": lambda x: tf.cast(tf.random.categorical(x, 40), tf.float32),
    "dropout": lambda x: tf.nn.dropout(tf.ones(tf.concat([tf.shape(x)[:1], [40]], 0)), 0.5),
    "shuffle": lambda x: tf.tile(
        tf.random.shuffle(tf.range(40.0))[tf.newaxis], [tf.shape(x)[0], 1]
    ),
}


class Recorder(keras.layers.Layer):
    """Keeps the rows that it drew, the newest first."""

    def __init__(self, draw: Callable[[Any], Any], columns: int) -> None:
        super().__init__()
        self.draw, self.columns = draw, columns

    def build(self, shape: Any) -> None:
        self.rows = self.add_weight(
            shape=(8, self.columns), initializer="zeros", trainable=False, name="rows"
        )

    def call(self, x: Any, training: bool = False) -> Any:
        if training:
            rows = self.draw(x)
            self.rows.assign(ops.concatenate([rows, self.rows[: -ops.shape(x)[0]]], axis=0))
        return x


def drawn(name: str, strategy: tf.distribute.Strategy) -> np.ndarray:
    """The rows of two steps of four examples on two replicas."""
    tf.random.set_seed(7)
    keras.utils.set_random_seed(7)
    columns = 3 if name in ("normal", "uniform", "truncated_normal") else 40
    with strategy.scope():
        recorder = Recorder(DRAWS[name], columns)
        model = keras.Sequential([keras.layers.Input((3,)), recorder, keras.layers.Dense(1)])
        model.compile("sgd", "mse")
    x = np.ones((8, 3), np.float32)
    tfdp.fit(model, x, x[:, :1], batch_size=4, shuffle=False, verbose=0)
    return np.asarray(recorder.rows.numpy())


@pytest.mark.parametrize("name", DRAWS)
def test_replicas_and_steps_draw_apart_and_a_run_repeats(name: str, strategies: Any) -> None:
    rows = drawn(name, strategies(2))
    of_replicas = [tuple(rows[place]) for place in (0, 2, 4, 6)]  # two steps, two replicas
    assert len(set(of_replicas)) == 4
    np.testing.assert_array_equal(drawn(name, strategies(2)), rows)


class Joined(keras.Model):
    """Real and generated rows in one batch, with dropout, as a discriminator gets them."""

    def __init__(self) -> None:
        super().__init__()
        layers = [keras.layers.Dense(4), keras.layers.Dropout(0.5), keras.layers.Dense(1)]
        self.net = keras.Sequential(layers)

    def train_step(self, data: Any) -> Any:
        both = tf.concat([data, tf.random.normal(tf.shape(data))], axis=0)
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.square(self.net(both, training=True) - 1.0))
        weights = self.net.trainable_weights
        self.optimizer.apply(tape.gradient(loss, weights), weights)
        return {"loss": loss}


def test_a_rehearsal_gives_parts_the_draws_of_the_whole(
    strategies: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    with strategies(2).scope():
        model = Joined()
        model.compile("sgd")
    x = np.random.default_rng(0).normal(size=(24, 3))
    tfdp.fit(model, x, batch_size=12, verbose=0)
    assert "tfdp: " not in capsys.readouterr().err
