"""Handwritten digits: a small convolutional network, trained on scikit-learn's scans."""

from __future__ import annotations

import dataclasses
from typing import Any

import keras
import tensorflow as tf

import tfdp
from tfdp.recipes.scans import scans


@dataclasses.dataclass(frozen=True)
class HParams:
    """The hyperparameters, which ``--hparam`` overrides."""

    learning_rate: float = 2e-3
    dropout: float = 0.3


def build_model(hparams: HParams) -> keras.Model:
    """Returns a small convolutional network: float32[8, 8, 1] in [0, 1] to 10 logits."""
    layers = keras.layers
    model = keras.Sequential(
        [
            layers.Input((8, 8, 1)),
            layers.Conv2D(32, 3, padding="same", activation="relu"),
            layers.Conv2D(64, 3, padding="same", activation="relu"),
            layers.MaxPooling2D(),
            layers.Flatten(),
            layers.Dropout(hparams.dropout),
            layers.Dense(64, activation="relu"),
            layers.Dropout(hparams.dropout),
            layers.Dense(10),
        ]
    )
    model.compile(
        optimizer=keras.optimizers.Adam(hparams.learning_rate),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    return model


def train_data(hparams: HParams) -> tfdp.Source:
    """Returns four fifths of the scans."""
    return tfdp.from_arrays(*scans(held_out=False))


def eval_data(hparams: HParams) -> tfdp.Source:
    """Returns the held-out fifth."""
    return tfdp.from_arrays(*scans(held_out=True))


def preprocess(features: Any, training: bool, seed: tf.Tensor) -> tf.Tensor:
    """Returns the model input for one raw scan, uint8[8, 8]."""
    return tf.cast(features, tf.float32)[..., tf.newaxis] / 16.0
