"""Losses, metrics and layers of one's own."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf
from keras import layers, ops

from tests.structures.registry import (
    BATCH,
    CLASSES,
    NUMBERS,
    ROWS,
    batches,
    cross_entropy,
    dense,
    structure,
)
from tests.structures.trial import Trial


def fit_with_loss(trial: Trial, loss: Any, rate: float = 0.05, **options: Any) -> None:
    with trial.scope():
        model = dense(6, 2)
        model.compile(keras.optimizers.SGD(rate), loss, metrics=["mae"])
    trial.fit(model, ROWS, NUMBERS, epochs=2, batch_size=BATCH, **options)
    trial.evaluate(model, ROWS, NUMBERS, batch_size=BATCH)


@structure("keras.io/guides/training_with_built_in_methods", "a loss function, a value per example")
def loss_per_example(trial: Trial) -> None:
    fit_with_loss(trial, lambda y, prediction: ops.mean(ops.square(y - prediction), axis=-1))


@structure("keras.io/guides/training_with_built_in_methods", "a loss function that gives a mean")
def loss_of_a_mean(trial: Trial) -> None:
    fit_with_loss(trial, lambda y, prediction: ops.mean(ops.square(y - prediction)))


@structure("tensorflow.org/guide/keras/training_with_built_in_methods", "… that gives a sum")
def loss_of_a_sum(trial: Trial) -> None:
    def error(y: Any, prediction: Any) -> Any:
        return ops.sum(ops.square(y - prediction))

    fit_with_loss(trial, error, rate=0.005)


@structure("usual in scripts of Kaggle", "… the root of a mean")
def loss_of_a_root(trial: Trial) -> None:
    def error(y: Any, prediction: Any) -> Any:
        return ops.sqrt(ops.mean(ops.square(y - prediction)))

    fit_with_loss(trial, error)


@structure("keras.io/guides/training_with_built_in_methods", "a subclass of Loss, with an argument")
def loss_class(trial: Trial) -> None:
    class Regularized(keras.losses.Loss):
        def __init__(self, factor: float = 0.1) -> None:
            super().__init__(name="regularized")
            self.factor = factor

        def call(self, y: Any, prediction: Any) -> Any:
            error = ops.mean(ops.square(y - prediction), axis=-1)
            return error + self.factor * ops.mean(ops.square(0.5 - prediction), axis=-1)

    fit_with_loss(trial, Regularized())


@structure(
    "keras.io/guides/training_with_built_in_methods", "a metric of one's own: a weighted count"
)
def metric_class(trial: Trial) -> None:
    class TruePositives(keras.metrics.Metric):
        def __init__(self, name: str = "true_positives") -> None:
            super().__init__(name=name)
            self.count = self.add_weight(shape=(), name="count", initializer="zeros")

        def update_state(self, y: Any, prediction: Any, sample_weight: Any = None) -> None:
            right = ops.argmax(prediction, axis=1) == ops.cast(y, "int32")
            right = ops.cast(right, self.dtype)
            if sample_weight is not None:
                right = right * ops.cast(sample_weight, self.dtype)
            self.count.assign_add(ops.sum(right))

        def result(self) -> Any:
            return self.count

        def reset_state(self) -> None:
            self.count.assign(0)

    with trial.scope():
        model = dense(6, 3)
        model.compile("rmsprop", cross_entropy(), metrics=[TruePositives()])
    trial.fit(model, ROWS, CLASSES, epochs=2, batch_size=BATCH, validation_data=(ROWS, CLASSES))


@structure("keras.io/api/metrics/base_metric", "a metric that keeps a maximum")
def metric_of_a_maximum(trial: Trial) -> None:
    class Largest(keras.metrics.Metric):
        def __init__(self) -> None:
            super().__init__(name="largest")
            self.value = self.add_weight(shape=(), name="value", initializer="zeros")

        def update_state(self, y: Any, prediction: Any, sample_weight: Any = None) -> None:
            self.value.assign(ops.maximum(self.value, ops.max(ops.abs(y - prediction))))

        def result(self) -> Any:
            return self.value

    with trial.scope():
        model = dense(6, 2)
        model.compile("sgd", "mse", metrics=[Largest()])
    trial.fit(model, ROWS, NUMBERS, epochs=2, batch_size=BATCH)


@structure("keras.io/api/layers/regularizers", "activity_regularizer, kernel_regularizer")
def activity_regularizer(trial: Trial) -> None:
    with trial.scope():
        hidden = layers.Dense(6, activity_regularizer="l2", kernel_regularizer="l1")
        model = keras.Sequential([keras.Input((5,)), hidden, layers.Dense(3)])
        model.compile("sgd", cross_entropy())
    trial.fit(model, ROWS, CLASSES, epochs=2, batch_size=BATCH)
    trial.evaluate(model, ROWS, CLASSES, batch_size=BATCH)


def fit_with_layer(trial: Trial, layer: type[layers.Layer]) -> Any:
    with trial.scope():
        own = layer()
        model = keras.Sequential([keras.Input((5,)), layers.Dense(4), own, layers.Dense(3)])
        model.compile(keras.optimizers.SGD(0.05), cross_entropy())
    trial.fit(model, ROWS, CLASSES, epochs=2, batch_size=BATCH)
    return own


@structure("keras.io/guides/making_new_layers_and_models_via_subclassing", "add_loss of a mean")
def add_loss_of_a_mean(trial: Trial) -> None:
    class Regularize(layers.Layer):
        def call(self, inputs: Any) -> Any:
            self.add_loss(0.1 * ops.mean(ops.square(inputs)))
            return inputs

    fit_with_layer(trial, Regularize)


@structure(
    "tensorflow.org/guide/keras/custom_layers_and_models", "add_loss of a sum of activations"
)
def add_loss_of_a_sum(trial: Trial) -> None:
    class Regularize(layers.Layer):
        def call(self, inputs: Any) -> Any:
            self.add_loss(1e-2 * tf.reduce_sum(inputs))
            return inputs

    fit_with_layer(trial, Regularize)


@structure(
    "keras.io/examples/nlp/text_classification_with_switch_transformer",
    "experts; add_loss of a product of means over the batch, which balances them",
)
def mixture_of_experts(trial: Trial) -> None:
    class Switch(layers.Layer):
        def __init__(self) -> None:
            super().__init__()
            self.route = layers.Dense(3)
            self.experts = [layers.Dense(4, activation="relu") for _ in range(3)]

        def call(self, inputs: Any) -> Any:
            probabilities = ops.softmax(self.route(inputs), axis=-1)
            chosen = ops.one_hot(ops.argmax(probabilities, axis=-1), 3, dtype=inputs.dtype)
            density, proxy = ops.mean(chosen, axis=0), ops.mean(probabilities, axis=0)
            self.add_loss(0.1 * ops.mean(density * proxy) * 9)
            outputs = ops.stack([expert(inputs) for expert in self.experts], axis=-1)
            return ops.sum(outputs * (chosen * probabilities)[:, None], axis=-1)

    fit_with_layer(trial, Switch)


@structure("keras.io/guides/making_new_layers_and_models_via_subclassing", "a weight that counts")
def integer_counter(trial: Trial) -> None:
    class Count(layers.Layer):
        def build(self, shape: Any) -> None:
            options = {"dtype": "int32", "initializer": "zeros", "trainable": False}
            self.seen = self.add_weight(shape=(), name="seen", **options)
            self.steps = self.add_weight(shape=(), name="steps", **options)

        def call(self, inputs: Any, training: bool = False) -> Any:
            if training:
                self.seen.assign_add(ops.sum(ops.cast(inputs[:, 0] > 0, "int32")))
                self.steps.assign_add(1)
            return inputs

    fit_with_layer(trial, Count)


@structure(
    "tensorflow.org/guide/intro_to_modules", "a tf.Variable that a layer assigns: a running sum"
)
def variable_of_tensorflow(trial: Trial) -> None:
    class Total(layers.Layer):
        def __init__(self) -> None:
            super().__init__()
            self.total = tf.Variable(tf.zeros((4,), tf.float64), trainable=False)

        def call(self, inputs: Any, training: bool = False) -> Any:
            if training:
                self.total.assign_add(tf.reduce_sum(inputs, axis=0))
            return inputs

    trial.keep("total", fit_with_layer(trial, Total).total.numpy())


@structure(
    "keras.io/guides/making_new_layers_and_models_via_subclassing", "a running sum of the data"
)
def running_sum(trial: Trial) -> None:
    class ComputeSum(layers.Layer):
        def build(self, shape: Any) -> None:
            self.total = self.add_weight(shape=(4,), initializer="zeros", trainable=False)

        def call(self, inputs: Any) -> Any:
            self.total.assign_add(ops.sum(inputs, axis=0))
            return inputs

    fit_with_layer(trial, ComputeSum)


@structure("tensorflow.org/api_docs/python/tf/random", "tf.random in a layer", is_random=True)
def noise_of_tensorflow(trial: Trial) -> None:
    class Noise(layers.Layer):
        def call(self, inputs: Any, training: bool = False) -> Any:
            if training:
                noise = tf.random.normal(tf.shape(inputs), stddev=0.3, dtype=inputs.dtype)
                trial.note_draw(noise)
                return inputs + noise
            return inputs

    with trial.scope():
        model = keras.Sequential([keras.Input((5,)), layers.Dense(4), Noise(), layers.Dense(1)])
        model.compile(keras.optimizers.Adam(0.05), "mse")
    trial.fit(model, ROWS, ROWS[:, :1] * 0 + 3, epochs=8, batch_size=BATCH)


@structure(
    "github.com/yaringal/multi-task-learning-example", "weights of tasks that are learned; add_loss"
)
def uncertainty_weights(trial: Trial) -> None:
    class Weigh(layers.Layer):
        def build(self, shapes: Any) -> None:
            self.log_variances = self.add_weight(shape=(2,), initializer="zeros", name="logs")

        def call(self, inputs: Any) -> Any:
            labels, numbers, logits, values = inputs
            losses = [
                keras.losses.sparse_categorical_crossentropy(labels, logits, from_logits=True),
                ops.mean(ops.square(numbers - values), axis=-1),
            ]
            for i, loss in enumerate(losses):
                log = self.log_variances[i]
                self.add_loss(ops.mean(ops.exp(-log) * loss + log))
            return ops.concatenate([logits, values], axis=-1)

    with trial.scope():
        rows, labels = keras.Input((5,), name="rows"), keras.Input((), name="labels", dtype="int64")
        numbers = keras.Input((2,), name="numbers")
        hidden = layers.Dense(6, activation="relu")(rows)
        outputs = Weigh()([labels, numbers, layers.Dense(3)(hidden), layers.Dense(2)(hidden)])
        model = keras.Model([rows, labels, numbers], outputs)
        model.compile("adam")
    data = {"rows": ROWS, "labels": CLASSES, "numbers": NUMBERS}
    trial.fit(model, tf.data.Dataset.from_tensor_slices(data).batch(BATCH), epochs=2)


@structure("keras.io/guides/custom_train_step_in_tensorflow", "compute_loss overridden")
def compute_loss_with_a_term(trial: Trial) -> None:
    class WithPenalty(keras.Model):
        def compute_loss(
            self, x: Any = None, y: Any = None, y_pred: Any = None, *rest: Any, **more: Any
        ) -> Any:
            loss = super().compute_loss(x, y, y_pred, *rest, **more)
            return loss + 0.1 * ops.mean(ops.square(y_pred))

    with trial.scope():
        inputs = keras.Input((5,))
        model = WithPenalty(inputs, layers.Dense(2)(inputs))
        model.compile("sgd", "mse")
    trial.fit(model, batches(ROWS, NUMBERS), epochs=2)
