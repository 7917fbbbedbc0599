"""Kinds of models."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from tests.exactness.registry import (
    BATCH,
    CLASSES,
    IMAGES,
    NUMBERS,
    ROWS,
    TAGS,
    WORDS,
    Case,
    arrays,
    batches,
    case,
    classifier,
    cross_entropy,
    layers,
    losses,
    optimizers,
)


@case
def sequential() -> Case:
    return Case(classifier(), arrays(), predict=True)


@case
def convolutional() -> Case:
    model = keras.Sequential(
        [
            layers.Input((6, 6, 2)),
            layers.Conv2D(4, 3, activation="relu"),
            layers.MaxPooling2D(),
            layers.DepthwiseConv2D(2),
            layers.LayerNormalization(),
            layers.Flatten(),
            layers.Dense(3),
        ]
    )
    model.compile(optimizers.SGD(0.1, momentum=0.9), cross_entropy(), metrics=["accuracy"])
    return Case(model, arrays(x=IMAGES), predict=True)


@case
def dict_inputs_and_two_outputs() -> Case:
    rows, words = layers.Input((5,), name="rows"), layers.Input((6,), name="words", dtype="int64")
    joined = layers.Concatenate()([rows, layers.Flatten()(layers.Embedding(20, 2)(words))])
    hidden = layers.Dense(8, activation="tanh")(joined)
    outputs = {
        "kind": layers.Dense(3, name="kind")(hidden),
        "size": layers.Dense(2, name="size")(hidden),
    }
    model = keras.Model({"rows": rows, "words": words}, outputs)
    model.compile(
        optimizers.Adam(0.02),
        {"kind": cross_entropy(), "size": "mse"},
        metrics={"kind": "accuracy", "size": "mae"},
        loss_weights={"kind": 1.0, "size": 0.3},
    )
    x, y = {"rows": ROWS, "words": WORDS}, {"kind": CLASSES, "size": NUMBERS}
    return Case(model, arrays(x=x, y=y), predict=True)


@case
def list_of_inputs_and_shared_layers() -> Case:
    left, right = layers.Input((5,)), layers.Input((5,))
    shared = layers.Dense(4, activation="relu")
    output = layers.Dense(3)(layers.Multiply()([shared(left), shared(right)]))
    model = keras.Model([left, right], output)
    model.compile(optimizers.Adam(0.02), cross_entropy(), metrics=["accuracy"])
    return Case(model, {"x": batches_of_pairs(), "epochs": 2})


def batches_of_pairs() -> tf.data.Dataset:
    return batches(ROWS, ROWS[::-1].copy(), CLASSES).map(lambda a, b, y: ((a, b), y))


class Subclassed(keras.Model):
    def __init__(self) -> None:
        super().__init__()
        self.hidden = layers.Dense(8, activation="gelu")
        self.last = layers.Dense(3)

    def call(self, inputs: Any, training: bool = False) -> Any:
        return self.last(self.hidden(inputs) + tf.reduce_mean(inputs, axis=1, keepdims=True))


@case
def subclassed() -> Case:
    model = Subclassed()
    model.compile(optimizers.Adam(0.02), cross_entropy(), metrics=["accuracy"])
    model.build((None, 5))
    return Case(model, arrays(), predict=True)


class Doubled(keras.Model):
    """Overrides the training step: the gradients are doubled, and a metric of its own is kept."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.mine = keras.metrics.Mean(name="mine")

    def train_step(self, data: Any) -> Any:
        x, y = data
        with tf.GradientTape() as tape:
            prediction = self(x, training=True)
            loss = self.compute_loss(x, y, prediction)
        weights = self.trainable_variables
        gradients = [2 * gradient for gradient in tape.gradient(loss, weights)]
        self.optimizer.apply(gradients, weights)
        for metric in self.metrics:
            if metric.name == "mine":
                metric.update_state(tf.square(prediction))
            elif metric.name != "loss":
                metric.update_state(y, prediction)
        return {metric.name: metric.result() for metric in self.metrics}


@case
def overridden_train_step() -> Case:
    inputs = layers.Input((5,))
    model = Doubled(inputs=inputs, outputs=layers.Dense(3)(inputs))
    model.compile(optimizers.SGD(0.5, global_clipnorm=0.2), cross_entropy(), metrics=["accuracy"])
    return Case(model, {"x": batches(ROWS, CLASSES), "epochs": 2})


class Autoencoder(keras.Model):
    """Its loss is a mean that no loss of Keras computes, as in Keras's guides to autoencoders."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.total = keras.metrics.Mean(name="loss")

    @property
    def metrics(self) -> list[Any]:
        return [self.total]

    def errors(self, x: Any, training: bool) -> Any:
        return tf.reduce_sum(tf.square(self(x, training=training) - x), axis=1)

    def train_step(self, data: Any) -> Any:
        x = data[0] if isinstance(data, tuple) else data
        with tf.GradientTape() as tape:
            errors = self.errors(x, training=True)
            loss = tf.reduce_mean(errors)
        weights = self.trainable_variables
        self.optimizer.apply(tape.gradient(loss, weights), weights)
        self.total.update_state(errors)
        return {"loss": self.total.result()}

    def test_step(self, data: Any) -> Any:
        self.total.update_state(self.errors(data[0] if isinstance(data, tuple) else data, False))
        return {"loss": self.total.result()}


@case
def loss_of_its_own_in_train_step() -> Case:
    inputs = layers.Input((5,))
    hidden = layers.Dense(2, activation="tanh")(inputs)
    model = Autoencoder(inputs=inputs, outputs=layers.Dense(5)(hidden))
    model.compile(optimizers.SGD(0.1))
    return Case(model, {"x": ROWS, "batch_size": BATCH, "epochs": 2})


@case
def recurrent() -> Case:
    model = keras.Sequential(
        [
            layers.Input((6, 4)),
            layers.Bidirectional(layers.LSTM(3, return_sequences=True)),
            layers.GRU(3),
            layers.Dense(3),
        ]
    )
    model.compile(optimizers.Adam(0.02), cross_entropy(), metrics=["accuracy"])
    return Case(model, arrays(x=IMAGES.reshape(-1, 18, 4)[:, :6]), predict=True)


@case
def attention() -> Case:
    words = layers.Input((6,), dtype="int64")
    embedded = layers.Embedding(20, 4)(words)
    attended = layers.MultiHeadAttention(2, 2)(embedded, embedded, use_causal_mask=True)
    output = layers.Dense(4)(layers.LayerNormalization()(embedded + attended))
    model = keras.Model(words, output)
    model.compile(optimizers.Adam(0.02), cross_entropy(), metrics=["accuracy"])
    return Case(model, arrays(x=WORDS, y=TAGS))


@case
def embedding_and_clipping() -> Case:
    """Its gradient is a few rows of a table, and not the same ones on every replica."""
    model = keras.Sequential(
        [layers.Input((6,), dtype="int64"), layers.Embedding(20, 4), layers.Dense(4)]
    )
    model.compile(optimizers.Adam(0.02, global_clipnorm=0.1), cross_entropy(), metrics=["accuracy"])
    return Case(model, arrays(x=WORDS, y=TAGS))


@case
def synchronized_batch_normalization() -> Case:
    """On batches that leave no replica without an example."""
    normalization = layers.BatchNormalization(synchronized=True, momentum=0.5)
    hidden = keras.Sequential([layers.Dense(6), normalization, layers.Activation("tanh")])
    data = {"x": ROWS[:37], "y": CLASSES[:37], "batch_size": 10}
    return Case(classifier(hidden=hidden), arrays(**data), predict=True)


@case
def batch_normalization_that_is_frozen() -> Case:
    """Where it normalizes by what it has averaged, it is exact without being synchronized."""
    normalization = layers.BatchNormalization(trainable=False)
    hidden = keras.Sequential([layers.Dense(6), normalization, layers.Activation("tanh")])
    return Case(classifier(hidden=hidden), arrays())


@case
def mse_of_a_dataset_of_strings() -> Case:
    """Features that only a lookup layer makes numbers of."""
    vocabulary = [f"w{i}" for i in range(20)]
    inputs = layers.Input((6,), dtype="string")
    ids = layers.StringLookup(vocabulary=vocabulary)(inputs)
    pooled = layers.GlobalAveragePooling1D()(layers.Embedding(21, 3)(ids))
    model = keras.Model(inputs, layers.Dense(2)(pooled))
    model.compile(optimizers.Adam(0.05), losses.MeanSquaredError(), metrics=["mae"])
    texts = tf.constant([[f"w{word}" for word in row] for row in WORDS])
    data = tf.data.Dataset.from_tensor_slices((texts, NUMBERS)).batch(BATCH)
    return Case(model, {"x": data, "epochs": 2}, predict=True)
