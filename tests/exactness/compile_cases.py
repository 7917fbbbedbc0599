"""Optimizers and their options, accumulation, losses, metrics, precision."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tests.exactness.registry import (
    CASES,
    CLASSES,
    IMAGES,
    NUMBERS,
    ROWS,
    TAGS,
    WEIGHTS,
    WORDS,
    Case,
    arrays,
    batches,
    case,
    classifier,
    cross_entropy,
    layers,
    losses,
    metrics,
    optimizers,
    precision,
)

schedules = optimizers.schedules

OPTIMIZERS: dict[str, Callable[[], Any]] = {
    "SGD": lambda: optimizers.SGD(0.2, momentum=0.9, nesterov=True),
    "RMSprop": lambda: optimizers.RMSprop(0.02, momentum=0.5, centered=True),
    "Adam": lambda: optimizers.Adam(0.02, amsgrad=True),
    "AdamW": lambda: optimizers.AdamW(0.02, weight_decay=0.1),
    "Adadelta": lambda: optimizers.Adadelta(1.0),
    "Adagrad": lambda: optimizers.Adagrad(0.1),
    "Adamax": lambda: optimizers.Adamax(0.02),
    "Adafactor": lambda: optimizers.Adafactor(0.02),
    "Nadam": lambda: optimizers.Nadam(0.02),
    "Ftrl": lambda: optimizers.Ftrl(0.1, l2_regularization_strength=0.01),
    "Lion": lambda: optimizers.Lion(0.01, weight_decay=0.1),
    "Lamb": lambda: optimizers.Lamb(0.02),
    "Muon": lambda: optimizers.Muon(0.02),
    "MultiOptimizer": lambda: optimizers.MultiOptimizer(
        lambda weight: (
            optimizers.SGD(0.3)
            if weight.path.endswith("bias")
            else optimizers.Adam(0.02, clipnorm=0.05)
        )
    ),
}

OPTIONS: dict[str, Callable[[], Any]] = {
    "clipnorm": lambda: optimizers.Adam(0.02, clipnorm=0.05),
    "global_clipnorm": lambda: optimizers.SGD(0.5, global_clipnorm=0.02),
    "clipvalue": lambda: optimizers.SGD(0.5, clipvalue=0.01),
    "learning_rate_schedule": lambda: optimizers.SGD(schedules.ExponentialDecay(0.2, 2, 0.5)),
    "schedule_with_restarts": lambda: optimizers.SGD(schedules.CosineDecayRestarts(0.2, 3)),
    "use_ema": lambda: optimizers.AdamW(0.05, use_ema=True, ema_momentum=0.8),
    "ema_overwrite_frequency": lambda: optimizers.Adam(
        0.05, use_ema=True, ema_momentum=0.5, ema_overwrite_frequency=3
    ),
    "gradient_accumulation_steps": lambda: optimizers.Adam(
        0.05, gradient_accumulation_steps=2, global_clipnorm=0.1
    ),
    "accumulation_and_averages": lambda: optimizers.AdamW(
        0.05, gradient_accumulation_steps=3, use_ema=True, ema_overwrite_frequency=2
    ),
    "accumulation_and_loss_scale": lambda: optimizers.LossScaleOptimizer(
        optimizers.Adam(0.05, gradient_accumulation_steps=2), 16.0
    ),
}


def with_optimizer(make: Callable[[], Any]) -> Callable[[], Case]:
    return lambda: Case(classifier(make()), arrays(), evaluate=False)


for _name, _make in OPTIMIZERS.items():
    CASES[f"optimizer_{_name}"] = with_optimizer(_make)
for _name, _make in OPTIONS.items():
    CASES[_name] = with_optimizer(_make)


@case
def optimizer_ScheduleFreeAdamW() -> Case:  # noqa: N802
    """Built here: where ``Model.fit`` builds it, it forgets to start from the weights."""
    model = classifier(optimizers.ScheduleFreeAdamW(0.02))
    model.optimizer.build(model.trainable_variables)
    return Case(model, arrays())


@case
def accumulate_steps_2() -> Case:
    """Equal to the undivided batch, clipping and the count of updates included."""
    optimizer = optimizers.Adam(0.02, global_clipnorm=0.05)
    return Case(classifier(optimizer), arrays(), tfdp={"accumulate_steps": 2})


@case
def accumulate_steps_3_of_an_embedding() -> Case:
    model = keras.Sequential(
        [layers.Input((6,), dtype="int64"), layers.Embedding(20, 4), layers.Dense(4)]
    )
    model.compile(optimizers.Adam(0.02), cross_entropy(), metrics=["accuracy"])
    return Case(model, arrays(x=WORDS, y=TAGS), tfdp={"accumulate_steps": 3})


@case
def accumulate_steps_of_a_sum_and_a_regularizer() -> Case:
    hidden = layers.Dense(8, activation="tanh", kernel_regularizer="l2")
    model = classifier(optimizers.SGD(0.01), hidden, cross_entropy(reduction="sum"))
    return Case(model, arrays(), tfdp={"accumulate_steps": 2})


@case
def bytes_per_pack_64() -> Case:
    """Every row of a matrix is a pack of its own."""
    return Case(
        classifier(optimizers.SGD(0.2, momentum=0.9)), arrays(), tfdp={"bytes_per_pack": 64}
    )


@case
def sample_weight() -> Case:
    return Case(classifier(weighted_metrics=["accuracy"]), arrays(sample_weight=WEIGHTS))


@case
def class_weight() -> Case:
    return Case(classifier(), arrays(class_weight={0: 3.0, 1: 0.25, 2: 1.5}))


@case
def reduction_sum() -> Case:
    model = classifier(optimizers.SGD(0.02), loss=cross_entropy(reduction="sum"))
    return Case(model, arrays())


@case
def reduction_mean() -> Case:
    return Case(classifier(loss=cross_entropy(reduction="mean")), arrays())


@case
def reduction_mean_with_sample_weight() -> Case:
    loss = cross_entropy(reduction="mean_with_sample_weight")
    return Case(classifier(loss=loss), arrays(sample_weight=WEIGHTS))


def tagger(loss: Any) -> keras.Model:
    """Words, of which 0 is masked, to tags; the mask reaches the loss."""
    words = layers.Input((6,), dtype="int64")
    embedded = layers.Embedding(20, 4, mask_zero=True)(words)
    output = layers.Dense(4)(layers.LSTM(3, return_sequences=True)(embedded))
    model = keras.Model(words, output)
    model.compile(optimizers.Adam(0.02), loss, metrics=["accuracy"])
    return model


@case
def mask() -> Case:
    words = np.where(np.arange(6) < 1 + WORDS[:, :1] % 6, WORDS, 0)  # of lengths 1 to 6
    return Case(tagger(cross_entropy()), arrays(x=words, y=TAGS))


@case
def mask_and_sample_weight() -> Case:
    words = np.where(np.arange(6) < 1 + WORDS[:, :1] % 6, WORDS, 0)
    return Case(tagger(cross_entropy()), arrays(x=words, y=TAGS, sample_weight=WEIGHTS[:, None]))


@case
def mask_and_reduction_sum() -> Case:
    words = np.where(np.arange(6) < 1 + WORDS[:, :1] % 6, WORDS, 0)
    return Case(tagger(cross_entropy(reduction="sum")), arrays(x=words, y=TAGS))


@case
def regularizers() -> Case:
    hidden = layers.Dense(
        8, activation="tanh", kernel_regularizer="l2", activity_regularizer=keras.regularizers.L2()
    )
    return Case(classifier(optimizers.RMSprop(0.01, clipvalue=0.02), hidden), arrays())


class Penalty(layers.Layer):
    def call(self, inputs: Any) -> Any:
        self.add_loss(0.1 * tf.reduce_mean(tf.square(inputs)))
        return inputs


@case
def add_loss_of_a_mean() -> Case:
    hidden = keras.Sequential([layers.Dense(8, activation="tanh"), Penalty()])
    return Case(classifier(hidden=hidden), arrays())


@case
def loss_function_for_each_example() -> Case:
    def loss(y: Any, prediction: Any) -> Any:
        return tf.reduce_mean(tf.square(tf.cast(y, prediction.dtype) - prediction), axis=-1)

    model = keras.Sequential([layers.Input((5,)), layers.Dense(2)])
    model.compile("sgd", loss)
    return Case(model, arrays(y=NUMBERS))


@case
def loss_function_that_gives_a_mean() -> Case:
    def loss(y: Any, prediction: Any) -> Any:
        return tf.reduce_mean(tf.square(tf.cast(y, prediction.dtype) - prediction))

    model = keras.Sequential([layers.Input((5,)), layers.Dense(2)])
    model.compile("sgd", loss)
    return Case(model, arrays(y=NUMBERS))


@case
def dice_for_each_image() -> Case:
    model = keras.Sequential(
        [layers.Input((6, 6, 2)), layers.Conv2D(1, 3, padding="same", activation="sigmoid")]
    )
    model.compile(optimizers.SGD(0.5), losses.Dice(axis=(1, 2, 3)))
    return Case(model, arrays(x=IMAGES, y=np.round(IMAGES[..., :1])))


@case
def two_losses_two_reductions_and_weights() -> Case:
    rows = layers.Input((5,))
    hidden = layers.Dense(8, activation="tanh")(rows)
    outputs = [layers.Dense(3)(hidden), layers.Dense(2)(hidden)]
    model = keras.Model(rows, outputs)
    model.compile(
        optimizers.SGD(0.02),
        [cross_entropy(), losses.MeanSquaredError(reduction="sum")],
        loss_weights=[1.0, 0.1],
        metrics=[["accuracy"], ["mae"]],
    )
    return Case(model, {"x": batches(ROWS, CLASSES, NUMBERS).map(lambda x, k, n: (x, (k, n)))})


class Spread(metrics.Metric):
    """A metric of one's own whose states are sums: the variance of the predictions."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.states = [self.add_variable((), "zeros", name=f"moment_{i}") for i in range(3)]

    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> None:
        values = tf.reshape(y_pred, [-1])
        for i, state in enumerate(self.states):
            state.assign_add(tf.reduce_sum(values**i))

    def result(self) -> Any:
        count, total, squares = self.states
        return squares / count - (total / count) ** 2


@case
def metrics_with_many_states() -> Case:
    model = keras.Sequential([layers.Input((5,)), layers.Dense(1, activation="sigmoid")])
    model.compile(
        optimizers.Adam(0.05),
        "binary_crossentropy",
        metrics=[
            metrics.AUC(num_thresholds=50),
            metrics.MeanIoU(2),
            metrics.F1Score(threshold=0.5),
            metrics.R2Score(),
            metrics.PrecisionAtRecall(0.5, num_thresholds=20),
            metrics.RootMeanSquaredError(),
            Spread(name="spread"),
        ],
        weighted_metrics=[metrics.BinaryAccuracy(name="weighted")],
    )
    labels = (CLASSES[:, None] > 0).astype(np.int64)
    return Case(model, arrays(y=labels.astype(float), sample_weight=WEIGHTS))


def with_precision(policy: str) -> Callable[[], Case]:
    def make() -> Case:
        with precision(policy):
            model = classifier(optimizers.SGD(0.1))
        return Case(model, arrays(x=ROWS.astype(np.float32)))

    return make


for _policy in ("float32", "mixed_bfloat16", "mixed_float16"):
    CASES[_policy] = with_precision(_policy)


@case
def overflow_on_one_replica() -> Case:
    """An example of the third batch overflows: all skip that update, and halve the scale."""
    rows = ROWS.copy()
    rows[29] = np.inf
    optimizer = optimizers.LossScaleOptimizer(optimizers.SGD(0.1), 16.0)
    model = classifier(optimizer, hidden=layers.Dense(8), metrics=[])
    return Case(model, {"x": batches(rows, CLASSES).repeat(), "steps_per_epoch": 7})
