"""Training and test steps of one's own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import layers, ops

from tests.structures.registry import (
    BATCH,
    CLASSES,
    NUMBERS,
    ROWS,
    batches,
    cross_entropy,
    structure,
)
from tests.structures.trial import Trial

GUIDE = "keras.io/guides/custom_train_step_in_tensorflow"


def fit_with_steps(
    trial: Trial, kind: type[keras.Model], optimizer: Any = None, **options: Any
) -> keras.Model:
    """Trains five numbers to two by a subclass of Model."""
    with trial.scope():
        inputs = keras.Input((5,))
        outputs = layers.Dense(2)(layers.Dense(6, activation="tanh")(inputs))
        model = kind(inputs, outputs)
        options = {"loss": "mse", **options}
        model.compile(optimizer=optimizer or keras.optimizers.SGD(0.05), **options)
    trial.fit(model, batches(ROWS, NUMBERS), epochs=2)
    return model


class OfTheGuide(keras.Model):
    """Updates the metric "loss" with the value of compute_loss."""

    def train_step(self, data: Any) -> Any:
        x, y = data
        with tf.GradientTape() as tape:
            prediction = self(x, training=True)
            loss = self.compute_loss(y=y, y_pred=prediction)
        variables = self.trainable_variables
        self.optimizer.apply(tape.gradient(loss, variables), variables)
        return self.updated(loss, y, prediction)

    def test_step(self, data: Any) -> Any:
        x, y = data
        prediction = self(x, training=False)
        return self.updated(self.compute_loss(y=y, y_pred=prediction), y, prediction)

    def updated(self, loss: Any, y: Any, prediction: Any) -> Any:
        for metric in self.metrics:
            if metric.name == "loss":
                metric.update_state(loss)
            else:
                metric.update_state(y, prediction)
        return {metric.name: metric.result() for metric in self.metrics}


@structure(GUIDE, 'metric "loss" updated with compute_loss\'s value; test_step, evaluate')
def step_of_the_guide(trial: Trial) -> None:
    model = fit_with_steps(trial, OfTheGuide, metrics=["mae"])
    trial.evaluate(model, ROWS, NUMBERS, batch_size=BATCH)


@structure(GUIDE, "a loss function of Keras, whose value per example goes to the tape: a sum")
def loss_per_example_in_step(trial: Trial) -> None:
    class Own(keras.Model):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            self.loss_tracker = keras.metrics.Mean(name="loss")
            self.mae_metric = keras.metrics.MeanAbsoluteError(name="mae")

        def train_step(self, data: Any) -> Any:
            x, y = data
            with tf.GradientTape() as tape:
                prediction = self(x, training=True)
                loss = keras.losses.mean_squared_error(y, prediction)
            gradients = tape.gradient(loss, self.trainable_variables)
            self.optimizer.apply(gradients, self.trainable_variables)
            self.loss_tracker.update_state(loss)
            self.mae_metric.update_state(y, prediction)
            return {"loss": self.loss_tracker.result(), "mae": self.mae_metric.result()}

        @property
        def metrics(self) -> Any:
            return [self.loss_tracker, self.mae_metric]

    fit_with_steps(trial, Own, keras.optimizers.SGD(0.01), loss=None)


@structure(GUIDE, "train_step that hands sample_weight and class_weight on")
def weights_in_step(trial: Trial) -> None:
    class Weighted(keras.Model):
        def train_step(self, data: Any) -> Any:
            x, y, sample_weight = data if len(data) == 3 else (*data, None)
            with tf.GradientTape() as tape:
                prediction = self(x, training=True)
                loss = self.compute_loss(y=y, y_pred=prediction, sample_weight=sample_weight)
            self.optimizer.apply(
                tape.gradient(loss, self.trainable_variables), self.trainable_variables
            )
            for metric in self.metrics:
                if metric.name == "loss":
                    metric.update_state(loss)
                else:
                    metric.update_state(y, prediction, sample_weight=sample_weight)
            return {metric.name: metric.result() for metric in self.metrics}

    with trial.scope():
        inputs = keras.Input((5,))
        model = Weighted(inputs, layers.Dense(3)(inputs))
        model.compile("adam", cross_entropy(), metrics=["accuracy"])
    trial.fit(model, ROWS, CLASSES, sample_weight=np.linspace(0, 2, 21), batch_size=BATCH)


@structure("keras.io/guides/distributed_training_with_tensorflow", "tf.nn.compute_average_loss")
def average_loss_of_the_global_batch(trial: Trial) -> None:
    class Averaged(keras.Model):
        def train_step(self, data: Any) -> Any:
            x, y = data
            with tf.GradientTape() as tape:
                errors = tf.reduce_mean(tf.square(self(x, training=True) - y), axis=-1)
                loss = tf.nn.compute_average_loss(errors, global_batch_size=BATCH)
            variables = self.trainable_variables
            self.optimizer.apply(tape.gradient(loss, variables), variables)
            self.tracker.update_state(errors)
            return {"loss": self.tracker.result()}

        @property
        def metrics(self) -> Any:
            return [self.tracker]

    with trial.scope():
        Averaged.tracker = keras.metrics.Mean(name="loss")
    fit_with_steps(trial, Averaged)


@structure(
    "tensorflow.org/tutorials/distribute/custom_training",
    "a loss without reduction, summed and divided by the global batch's size",
)
def sum_over_the_global_batch_size(trial: Trial) -> None:
    class Summed(keras.Model):
        def train_step(self, data: Any) -> Any:
            x, y = data
            with tf.GradientTape() as tape:
                losses = keras.losses.MeanSquaredError(reduction="none")(y, self(x, training=True))
                loss = tf.reduce_sum(losses) / BATCH
            variables = self.trainable_variables
            self.optimizer.apply(tape.gradient(loss, variables), variables)
            return {"loss": loss, "largest": tf.reduce_max(losses)}

    fit_with_steps(trial, Summed)


@structure("tensorflow.org/guide/distributed_training", "a mean, divided by num_replicas_in_sync")
def mean_over_replicas(trial: Trial) -> None:
    class Divided(keras.Model):
        def train_step(self, data: Any) -> Any:
            x, y = data
            with tf.GradientTape() as tape:
                loss = tf.reduce_mean(tf.square(self(x, training=True) - y))
                loss = loss / self.distribute_strategy.num_replicas_in_sync
            variables = self.trainable_variables
            self.optimizer.apply(tape.gradient(loss, variables), variables)
            return self.compute_metrics(x, y, self(x))

    fit_with_steps(trial, Divided)


def step_that_changes(
    change: Callable[[list[Any], keras.Model], list[Any]],
) -> type[keras.Model]:
    """A model whose train_step does something with the gradients before it applies them."""

    class Changed(keras.Model):
        def train_step(self, data: Any) -> Any:
            x, y = data
            with tf.GradientTape() as tape:
                prediction = self(x, training=True)
                loss = self.compute_loss(x, y, prediction)
            variables = self.trainable_variables
            gradients = change(tape.gradient(loss, variables), self)
            self.optimizer.apply_gradients(zip(gradients, variables, strict=True))
            return self.compute_metrics(x, y, prediction)

    return Changed


@structure(
    "tensorflow.org/api_docs/python/tf/clip_by_global_norm", "tf.clip_by_global_norm before apply"
)
def clipping_in_step(trial: Trial) -> None:
    fit_with_steps(trial, step_that_changes(lambda all_, _: tf.clip_by_global_norm(all_, 0.05)[0]))


@structure("tensorflow.org/api_docs/python/tf/clip_by_value", "tf.clip_by_value before apply")
def clipping_by_value_in_step(trial: Trial) -> None:
    fit_with_steps(
        trial,
        step_that_changes(lambda all_, _: [tf.clip_by_value(each, -0.01, 0.01) for each in all_]),
    )


@structure("keras.io/api/optimizers", "an optimizer that clips in its own apply")
def clipping_optimizer(trial: Trial) -> None:
    class Clipping(keras.optimizers.SGD):
        def apply(self, grads: Any, trainable_variables: Any = None) -> None:
            grads = list(tf.clip_by_global_norm(grads, 0.05)[0])
            super().apply(grads, trainable_variables)

    with trial.scope():
        optimizer = Clipping(0.5)
    fit_with_steps(trial, keras.Model, optimizer)


@structure("keras.io/api/optimizers", "update_step of one's own, with a slot")
def optimizer_of_ones_own(trial: Trial) -> None:
    class SignMomentum(keras.optimizers.Optimizer):
        def __init__(self, rate: float) -> None:
            super().__init__(learning_rate=rate)

        def build(self, variables: Any) -> None:
            if not self.built:
                super().build(variables)
                self.momenta = self.add_optimizer_variables(variables, "momentum")

        def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
            momentum = self.momenta[self._get_variable_index(variable)]
            self.assign(momentum, 0.9 * momentum + 0.1 * gradient)
            self.assign_sub(variable, learning_rate * ops.tanh(10 * momentum))

    with trial.scope():
        optimizer = SignMomentum(0.05)
    fit_with_steps(trial, keras.Model, optimizer)


@structure("github.com/andreped/GradientAccumulator", "applied at every second step")
def accumulation_by_hand(trial: Trial) -> None:
    class Accumulating(keras.Model):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            self.turn = self.add_weight(
                shape=(), dtype="int32", initializer="zeros", trainable=False, name="turn"
            )
            self.sums = [
                self.add_weight(shape=v.shape, initializer="zeros", trainable=False, name="sum")
                for v in self.trainable_variables
            ]

        def train_step(self, data: Any) -> Any:
            x, y = data
            self.turn.assign_add(1)
            with tf.GradientTape() as tape:
                prediction = self(x, training=True)
                loss = self.compute_loss(x, y, prediction)
            gradients = tape.gradient(loss, self.trainable_variables)
            for total, gradient in zip(self.sums, gradients, strict=True):
                total.assign_add(gradient)
            tf.cond(tf.equal(self.turn, 2), self.apply_all, lambda: None)
            return self.compute_metrics(x, y, prediction)

        def apply_all(self) -> None:
            self.optimizer.apply([each.value for each in self.sums], self.trainable_variables)
            self.turn.assign(0)
            for total in self.sums:
                total.assign(tf.zeros_like(total))

    fit_with_steps(trial, Accumulating)


@structure(
    "github.com/Jannoshh/simple-sam", "two passes; weights moved along the gradient and back"
)
def sharpness_aware(trial: Trial) -> None:
    class Sharpness(keras.Model):
        def train_step(self, data: Any) -> Any:
            x, y = data
            variables = self.trainable_variables
            with tf.GradientTape() as tape:
                loss = self.compute_loss(x, y, self(x, training=True))
            gradients = tape.gradient(loss, variables)
            scale = 0.05 / (tf.linalg.global_norm(gradients) + 1e-12)
            moves = [gradient * scale for gradient in gradients]
            for variable, move in zip(variables, moves, strict=True):
                variable.assign_add(move)
            with tf.GradientTape() as tape:
                prediction = self(x, training=True)
                loss = self.compute_loss(x, y, prediction)
            gradients = tape.gradient(loss, variables)
            for variable, move in zip(variables, moves, strict=True):
                variable.assign_sub(move)
            self.optimizer.apply(gradients, variables)
            return self.compute_metrics(x, y, prediction)

    fit_with_steps(trial, Sharpness)


@structure("tensorflow.org/tutorials/generative/adversarial_fgsm", "gradients of the input")
def adversarial_training(trial: Trial) -> None:
    class Adversarial(keras.Model):
        def train_step(self, data: Any) -> Any:
            x, y = data
            with tf.GradientTape() as tape:
                tape.watch(x)
                loss = self.compute_loss(x, y, self(x, training=True))
            x_near = x + 0.1 * tf.sign(tape.gradient(loss, x))
            with tf.GradientTape() as tape:
                prediction = self(x, training=True)
                loss = self.compute_loss(x, y, prediction)
                loss += 0.3 * self.compute_loss(x_near, y, self(x_near, training=True))
            variables = self.trainable_variables
            self.optimizer.apply(tape.gradient(loss, variables), variables)
            return self.compute_metrics(x, y, prediction)

    fit_with_steps(trial, Adversarial)


def fit_meta(trial: Trial, is_of_the_batch: bool) -> None:
    """The examples are tasks, which have an inner update each, or one for all of the batch."""

    class Meta(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.kernel = self.add_weight(shape=(5, 2), name="kernel")
            self.tracker = keras.metrics.Mean(name="loss")

        @property
        def metrics(self) -> Any:
            return [self.tracker]

        def train_step(self, data: Any) -> Any:
            (x_support, y_support), (x_query, y_query) = data
            with tf.GradientTape() as outer:
                kernels = self.kernel[None] + 0.0
                if not is_of_the_batch:
                    kernels = tf.repeat(kernels, tf.shape(x_query)[0], axis=0)
                with tf.GradientTape() as inner:
                    inner.watch(kernels)
                    errors = tf.square(tf.matmul(x_support, kernels) - y_support)
                    loss = tf.reduce_sum(tf.reduce_mean(errors, axis=(1, 2)))
                fast = kernels - 0.05 * inner.gradient(loss, kernels)
                errors = tf.square(tf.matmul(x_query, fast) - y_query)
                loss = tf.reduce_mean(errors)
            self.optimizer.apply([outer.gradient(loss, self.kernel.value)], [self.kernel])
            self.tracker.update_state(loss)
            return {"loss": self.tracker.result()}

    x, y = ROWS[:20].reshape(10, 2, 5), NUMBERS[:20].reshape(10, 2, 2)
    with trial.scope():
        model = Meta()
        model.compile(keras.optimizers.SGD(0.1))
    trial.fit(model, batches((x, y), (x[::-1].copy(), y[::-1].copy()), size=4), epochs=2)


@structure("arxiv.org/abs/1703.03400 (MAML)", "nested tapes: an inner update for each example")
def learning_to_learn(trial: Trial) -> None:
    fit_meta(trial, is_of_the_batch=False)


@structure("arxiv.org/abs/1703.03400 (MAML)", "nested tapes: an inner update for the batch")
def inner_update_of_the_batch(trial: Trial) -> None:
    fit_meta(trial, is_of_the_batch=True)


@structure(
    "keras.io/examples/vision/knowledge_distillation",
    "a frozen teacher; two losses of Keras in compute_loss",
)
def knowledge_distillation(trial: Trial) -> None:
    class Distiller(keras.Model):
        def __init__(self, student: keras.Model, teacher: keras.Model) -> None:
            super().__init__()
            self.student, self.teacher = student, teacher

        def compile(self, optimizer: Any, metrics: Any, student: Any, distillation: Any) -> None:
            super().compile(optimizer=optimizer, metrics=metrics)
            self.student_loss_fn, self.distillation_loss_fn = student, distillation

        def compute_loss(
            self,
            x: Any = None,
            y: Any = None,
            y_pred: Any = None,
            sample_weight: Any = None,
            allow_empty: bool = False,
        ) -> Any:
            soft = ops.softmax(self.teacher(x, training=False) / 3, axis=1)
            loss = self.distillation_loss_fn(soft, ops.softmax(y_pred / 3, axis=1)) * 9
            return 0.1 * self.student_loss_fn(y, y_pred) + 0.9 * loss

        def call(self, x: Any) -> Any:
            return self.student(x)

    with trial.scope():
        teacher, student = (
            keras.Sequential([keras.Input((5,)), layers.Dense(size, "relu"), layers.Dense(3)])
            for size in (8, 4)
        )
        model = Distiller(student, teacher)
        model.compile(
            keras.optimizers.Adam(0.01),
            [keras.metrics.SparseCategoricalAccuracy()],
            cross_entropy(),
            keras.losses.KLDivergence(),
        )
    trial.fit(model, ROWS, CLASSES, epochs=2, batch_size=BATCH)
    trial.evaluate(model, ROWS, CLASSES)


@structure(GUIDE, "compute_metrics overridden; early stopping on the name that it adds")
def compute_metrics_with_a_name(trial: Trial) -> None:
    class Named(keras.Model):
        def compute_metrics(self, x: Any, y: Any, y_pred: Any, sample_weight: Any = None) -> Any:
            results = super().compute_metrics(x, y, y_pred, sample_weight)
            self.spread.update_state(y_pred)
            return results | {"spread": self.spread.result()}

    with trial.scope():
        Named.spread = keras.metrics.Mean(name="spread")
        inputs = keras.Input((5,))
        model = Named(inputs, layers.Dense(2)(inputs))
        model.compile("sgd", "mse", metrics=["mae"])
    stop = keras.callbacks.EarlyStopping(monitor="spread", patience=1, mode="max")
    trial.fit(model, batches(ROWS, NUMBERS), epochs=4, callbacks=[stop])


@structure(GUIDE, "numbers in train_step's result that are no metrics")
def logs_that_are_no_metrics(trial: Trial) -> None:
    class Logging(keras.Model):
        def train_step(self, data: Any) -> Any:
            x, y = data
            with tf.GradientTape() as tape:
                prediction = self(x, training=True)
                loss = self.compute_loss(x, y, prediction)
            variables = self.trainable_variables
            gradients = tape.gradient(loss, variables)
            self.optimizer.apply(gradients, variables)
            logs = self.compute_metrics(x, y, prediction)
            error = tf.reduce_mean(tf.abs(prediction - y))
            return logs | {"mean_error": error, "rate": self.optimizer.learning_rate}

    fit_with_steps(trial, Logging)
