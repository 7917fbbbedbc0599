"""N replicas are one: what Keras computes on one replica is what tfdp computes on any number."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfdp

layers, losses, optimizers = keras.layers, keras.losses, keras.optimizers

EXAMPLES = 41  # batches of 10, 10, 10, 10 and 1: uneven, and fewer than replicas in the end
BATCH = 10

random = np.random.default_rng(1)
ROWS = random.normal(size=(EXAMPLES, 5))
CLASSES = random.integers(0, 3, EXAMPLES)
NUMBERS = random.normal(size=(EXAMPLES, 2))
WORDS = random.integers(0, 20, (EXAMPLES, 6))
WEIGHTS = random.uniform(0, 4, EXAMPLES)

Arguments = dict[str, Any]
CASES: dict[str, Callable[[], tuple[keras.Model, Arguments]]] = {}


def case(make: Callable[[], tuple[keras.Model, Arguments]]) -> Any:
    """Registers a function that gives a compiled model and the arguments of fit."""
    CASES[make.__name__] = make
    return make


def classifier(optimizer: Any = None, hidden: Any = None, **compiling: Any) -> keras.Model:
    model = keras.Sequential(
        [
            layers.Input((5,)),
            hidden or layers.Dense(8, activation="tanh"),
            layers.Dense(3),
        ]
    )
    model.compile(
        optimizer or optimizers.Adam(0.02),
        losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=[
            "accuracy",
            keras.metrics.SparseCategoricalCrossentropy("entropy", from_logits=True),
        ],
        **compiling,
    )
    return model


def arrays(**more: Any) -> Arguments:
    return {"x": ROWS, "y": CLASSES, "batch_size": BATCH, "epochs": 2} | more


def batches(*parts: Any) -> tf.data.Dataset:
    given = tuple(part.astype(keras.config.floatx()) if part.dtype == float else part
                  for part in parts)  # fmt: skip
    return tf.data.Dataset.from_tensor_slices(given).batch(BATCH)


@case
def clipnorm() -> tuple[keras.Model, Arguments]:
    return classifier(optimizers.Adam(0.02, clipnorm=0.05)), arrays()


@case
def an_optimizer_for_each_kind_of_weight() -> tuple[keras.Model, Arguments]:
    def chosen(weight: Any) -> keras.optimizers.Optimizer:
        is_bias = weight.path.endswith("bias")
        return optimizers.SGD(0.3) if is_bias else optimizers.Adam(0.02, clipnorm=0.05)

    return classifier(optimizers.MultiOptimizer(chosen)), arrays()


@case
def learning_rate_schedule_and_averaged_weights() -> tuple[keras.Model, Arguments]:
    schedule = optimizers.schedules.ExponentialDecay(0.1, 2, 0.5)
    return classifier(optimizers.AdamW(schedule, use_ema=True, weight_decay=0.1)), arrays()


@case
def sample_weight() -> tuple[keras.Model, Arguments]:
    return classifier(weighted_metrics=["accuracy"]), arrays(sample_weight=WEIGHTS)


@case
def regularizers_and_clipvalue() -> tuple[keras.Model, Arguments]:
    hidden = layers.Dense(
        8, activation="tanh", kernel_regularizer="l2", activity_regularizer=keras.regularizers.L2()
    )
    return classifier(optimizers.RMSprop(0.01, clipvalue=0.02), hidden=hidden), arrays()


@case
def class_weight_and_some_batches_to_validate() -> tuple[keras.Model, Arguments]:
    others = batches(ROWS * 2, CLASSES).repeat()
    return classifier(), arrays(
        class_weight={0: 3.0, 1: 0.25, 2: 1.5}, validation_data=others, validation_steps=5
    )


@case
def embedding() -> tuple[keras.Model, Arguments]:
    model = keras.Sequential(
        [
            layers.Input((6,), dtype="int64"),
            layers.Embedding(20, 4),
            layers.Dense(20),
        ]
    )
    model.compile(
        optimizers.Adam(0.02, global_clipnorm=0.1),
        losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    return model, arrays(x=WORDS, y=np.roll(WORDS, 1, axis=1))


@case
def dict_inputs_and_two_outputs() -> tuple[keras.Model, Arguments]:
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
        {"kind": losses.SparseCategoricalCrossentropy(from_logits=True), "size": "mse"},
        metrics={"kind": "accuracy", "size": "mae"},
        loss_weights={"kind": 1.0, "size": 0.3},
    )
    # Keras weighs batches alike in the losses of single outputs, so here batches are equal.
    parts = ROWS[:40], WORDS[:40], CLASSES[:40], NUMBERS[:40]
    rows, words, kinds, sizes = parts
    return model, arrays(x={"rows": rows, "words": words}, y={"kind": kinds, "size": sizes},
                         batch_size=8)  # fmt: skip


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
def overridden_train_step() -> tuple[keras.Model, Arguments]:
    inputs = layers.Input((5,))
    model = Doubled(inputs=inputs, outputs=layers.Dense(3)(inputs))
    model.compile(
        optimizers.SGD(0.5, global_clipnorm=0.2),
        losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    return model, {"x": batches(ROWS, CLASSES), "epochs": 2}


@case
def validation_of_arrays() -> tuple[keras.Model, Arguments]:
    others = (ROWS[:19] * 2, CLASSES[:19], WEIGHTS[:19])
    return classifier(), arrays(validation_data=others, validation_batch_size=5, epochs=3,
                                validation_freq=2)  # fmt: skip


@case
def steps_per_epoch_of_a_repeated_dataset() -> tuple[keras.Model, Arguments]:
    data = batches(ROWS, CLASSES).repeat()
    return classifier(), {"x": data, "epochs": 3, "steps_per_epoch": 3}


MORE_REPLICAS = ("clipnorm", "embedding")
PREDICTED = ("clipnorm", "dict_inputs_and_two_outputs", "steps_per_epoch_of_a_repeated_dataset")

Result = tuple[keras.Model, dict[str, list[float]], dict[str, float], Any]


def made(name: str) -> tuple[keras.Model, Arguments]:
    keras.utils.set_random_seed(5)
    return CASES[name]()


@functools.cache
def with_keras(name: str, precision: str) -> Result:
    """What Keras makes of a case, in this process and on one device."""
    model, arguments = made(name)
    shuffle = {} if isinstance(arguments["x"], tf.data.Dataset) else {"shuffle": False}
    history = model.fit(**arguments, **shuffle, verbose=0).history
    scores = model.evaluate(**about_data(arguments), verbose=0, return_dict=True)
    if name not in PREDICTED:
        return model, history, scores, None
    return model, history, scores, model.predict(**about_data(arguments, labels=False), verbose=0)


def with_tfdp(name: str, strategy: tf.distribute.Strategy) -> Result:
    with strategy.scope():
        model, arguments = made(name)
    history = tfdp.fit(model, **arguments, shuffle=False, verbose=0).history
    scores = tfdp.evaluate(model, **about_data(arguments))
    if name not in PREDICTED:
        return model, history, scores, None
    return model, history, scores, tfdp.predict(model, **about_data(arguments, labels=False))


def about_data(arguments: Arguments, labels: bool = True) -> Arguments:
    """What evaluate and predict take of fit's arguments."""
    names = ("x", "y", "sample_weight", "batch_size") if labels else ("x", "batch_size")
    chosen = {name: arguments[name] for name in names if name in arguments}
    return chosen | ({"steps": 4} if "steps_per_epoch" in arguments else {})


def assert_same(ours: Result, theirs: Result, tolerance: float) -> None:
    close = functools.partial(np.testing.assert_allclose, rtol=tolerance, atol=tolerance)
    assert ours[1].keys() == theirs[1].keys()
    for name in theirs[1]:
        close(ours[1][name], theirs[1][name], err_msg=f"history of {name}")
    assert ours[2].keys() == theirs[2].keys()
    for name in theirs[2]:
        close(ours[2][name], theirs[2][name], err_msg=f"score of {name}")
    for mine, other in zip(ours[0].weights, theirs[0].weights, strict=True):
        close(mine.numpy(), other.numpy(), err_msg=other.path)
    variables = zip(ours[0].optimizer.variables, theirs[0].optimizer.variables, strict=True)
    for mine, other in variables:
        close(mine.numpy(), other.numpy(), err_msg=other.path)
    if theirs[3] is not None:
        tf.nest.map_structure(close, ours[3], theirs[3])


@pytest.mark.parametrize(
    ("name", "replicas"), [*((name, 2) for name in CASES), *((name, 4) for name in MORE_REPLICAS)]
)
def test_in_double_precision(name: str, replicas: int, strategies: Any, float64: None) -> None:
    assert_same(with_tfdp(name, strategies(replicas)), with_keras(name, "float64"), 1e-9)


# A third is not exact in binary, and Keras divides the loss by the replicas in single precision.
@pytest.mark.parametrize(("name", "replicas"), [("clipnorm", 1), ("embedding", 3)])
def test_in_single_precision(name: str, replicas: int, strategies: Any) -> None:
    assert_same(with_tfdp(name, strategies(replicas)), with_keras(name, "float32"), 1e-6)


def test_a_dataset_of_unknown_length_gives_what_one_of_known_length_does(strategies: Any) -> None:
    rows = ROWS.astype(np.float32)
    signature = (tf.TensorSpec((5,), tf.float32), tf.TensorSpec((), tf.int64))
    data = tf.data.Dataset.from_generator(
        lambda: zip(rows, CLASSES, strict=True), output_signature=signature
    ).batch(BATCH)
    with strategies(3).scope():
        model, _ = made("clipnorm")
    history = tfdp.fit(model, data, epochs=2, verbose=0).history
    result = model, history, tfdp.evaluate(model, data), tfdp.predict(model, data)
    assert_same(result, with_keras("clipnorm", "float32"), 1e-6)


def test_class_weights_multiply_sample_weights() -> None:
    weights_of_class = np.array([3.0, 0.25, 1.5])
    results = []
    for weights, class_weight in (
        (WEIGHTS, dict(enumerate(weights_of_class))),
        (WEIGHTS * weights_of_class[CLASSES], None),
    ):
        keras.utils.set_random_seed(5)
        model = classifier()
        arguments = arrays(sample_weight=weights, class_weight=class_weight)
        history = tfdp.fit(model, **arguments, shuffle=False, verbose=0).history
        results.append(history["loss"])
    np.testing.assert_allclose(*results, rtol=1e-6)


@pytest.mark.parametrize(
    "option", [{"gradient_accumulation_steps": 2}, {"use_ema": True, "ema_overwrite_frequency": 2}]
)
def test_what_keras_can_not_do_on_several_replicas_is_refused(
    option: dict[str, Any], strategies: Callable[[int], tf.distribute.Strategy]
) -> None:
    with strategies(2).scope():
        model = keras.Sequential([keras.layers.Input((3,)), keras.layers.Dense(1)])
        model.compile(keras.optimizers.SGD(0.1, **option), "mse")
    with pytest.raises(tfdp.BadInput, match="on several replicas"):
        tfdp.fit(model, np.zeros((4, 3)), np.zeros((4, 1)))


def test_a_model_that_is_compiled_anew_is_evaluated_anew() -> None:
    class OwnMetrics(keras.Sequential):
        @property
        def metrics(self) -> list[Any]:
            return [self._loss_tracker]

    model = OwnMetrics([keras.layers.Input((1,)), keras.layers.Dense(1, "linear", use_bias=False)])
    model.set_weights([np.zeros((1, 1), np.float32)])
    rows, threes = np.ones((4, 1)), np.full((4, 1), 3.0)
    model.compile("sgd", "mse")
    assert tfdp.evaluate(model, rows, threes)["loss"] == 9.0
    model.compile("sgd", "mae")
    assert tfdp.evaluate(model, rows, threes)["loss"] == 3.0
