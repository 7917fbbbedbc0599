"""Dropout draws from (seed, step, replica): apart where it must differ, repeatable bit for bit."""

from __future__ import annotations

import functools
import hashlib
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfdp
from tests.tfdp.states import checkpoint_of
from tfdp.checkpoints import state
from tfdp.data import pipeline
from tfdp.data.order import Order
from tfdp.provenance import weights_sha256
from tfdp.step import keras_private, metrics
from tfdp.step.gradients import GradientAllReduce
from tfdp.trainer import evaluation
from tfdp.trainer.epochs import run_epochs
from tfdp.workers.collectives import workers_of

UNITS = 2000
random = np.random.default_rng(2)
ROWS = random.normal(size=(22, 6)).astype(np.float32)
CLASSES = random.integers(0, 3, 22)
STEPS = 5  # of an epoch: batches of 5, 5, 5, 5 and 2
LAST = 8


class Kept(keras.metrics.Metric):
    """How often dropout kept each unit, summed over replicas; results are shares of units."""

    def __init__(self) -> None:
        super().__init__(name="kept")
        self.count = self.add_weight(shape=(UNITS,), initializer="zeros", name="count")

    def update_state(self, y: Any, prediction: Any, sample_weight: Any = None) -> None:
        self.count.assign_add(tf.reduce_sum(tf.cast(prediction > 0, tf.float32), axis=0))

    def result(self) -> Any:
        places = tf.range(UNITS, dtype=tf.float32)
        return {
            "kept_by_one": tf.reduce_mean(tf.cast(self.count == 1, tf.float32)),
            "fingerprint": tf.reduce_mean(self.count * tf.sin(places)),
        }


def masks(strategy: tf.distribute.Strategy, seed: int = 1) -> dict[str, list[float]]:
    """What dropout did to two equal examples at each of four steps."""
    keras.utils.set_random_seed(seed)
    with strategy.scope():
        model = keras.Sequential([keras.layers.Input((UNITS,)), keras.layers.Dropout(0.5)])
        model.compile("sgd", "mse", metrics=[Kept()])
    ones = np.ones((2, UNITS), np.float32)
    history = tfdp.fit(model, ones, ones, batch_size=2, epochs=4, verbose=0).history
    return {name: history[name] for name in ("kept_by_one", "fingerprint")}


def test_replicas_and_steps_draw_apart_and_a_run_repeats(strategies: Any) -> None:
    first = masks(strategies(2))
    # Had both replicas drawn alike, no unit would be kept by one alone; independent draws: half.
    np.testing.assert_allclose(first["kept_by_one"], 0.5, atol=0.06)
    assert len(set(first["fingerprint"])) == 4
    assert masks(strategies(2)) == first
    assert masks(strategies(2), seed=2)["fingerprint"] != first["fingerprint"]


def test_what_is_dropped_does_not_depend_on_how_steps_are_put_into_calls() -> None:
    def fingerprints(callbacks: list[keras.callbacks.Callback]) -> list[float]:
        keras.utils.set_random_seed(1)
        model = keras.Sequential([keras.layers.Input((UNITS,)), keras.layers.Dropout(0.5)])
        model.compile("sgd", "mse", metrics=[Kept()])
        ones = np.ones((12, UNITS), np.float32)
        fit = functools.partial(tfdp.fit, model, ones, ones, batch_size=1, epochs=2, verbose=0)
        return fit(callbacks=callbacks).history["fingerprint"]

    each = keras.callbacks.LambdaCallback(on_train_batch_end=lambda batch, logs: None)
    assert fingerprints([]) == fingerprints([each])


def model_with_dropout(strategy: tf.distribute.Strategy) -> keras.Model:
    keras.utils.clear_session()  # Keras numbers names from 1 again, as in a new process
    keras.utils.set_random_seed(3)
    with strategy.scope():
        model = keras.Sequential(
            [
                keras.layers.Input((6,)),
                keras.layers.Dense(8, activation="relu"),
                keras.layers.Dropout(0.4),
                keras.layers.GaussianNoise(0.1),
                keras.layers.Dense(3),
            ]
        )
        model.compile(
            keras.optimizers.Adam(0.01, clipnorm=0.5),
            keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            metrics=["accuracy"],
        )
    return model


def train(
    model: keras.Model, first: int, last: int, saved: dict[str, np.ndarray] | None = None
) -> list[dict[str, float]]:
    """Trains from one step to another, from a state if there is one; gives the logs of epochs."""
    workers = workers_of(model.distribute_strategy)
    order = Order(len(ROWS), 5, seed=4)
    source = tfdp.from_arrays(ROWS, CLASSES)
    batches = pipeline.from_source(source, order, workers, first_step=first)
    keras_private.build(model, batches.element_spec)
    if saved is not None:
        state.restore(model, workers, checkpoint_of(saved))
    logs: list[dict[str, float]] = []
    keep = keras.callbacks.LambdaCallback(on_epoch_end=lambda _, each: logs.append(dict(each)))
    run_epochs(
        model,
        batches,
        workers,
        steps_per_epoch=order.steps_per_epoch,
        first_step=first,
        last_step=last,
        all_reduce=GradientAllReduce(),
        callbacks=[keep],
    )
    return logs


def captured(model: keras.Model) -> dict[str, np.ndarray]:
    return state.capture(model, workers_of(model.distribute_strategy))


def assert_identical(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> None:
    assert one.keys() == other.keys()
    for name, array in one.items():
        assert array.tobytes() == other[name].tobytes(), name


def test_an_interruption_and_an_evaluation_change_nothing(strategies: Any) -> None:
    uninterrupted = model_with_dropout(strategies(2))
    logs = train(uninterrupted, 0, LAST)
    final = captured(uninterrupted)

    model = model_with_dropout(strategies(2))
    train(model, 0, 6)  # in the last epoch, whose logs need the metrics of its first step
    saved = captured(model)
    scores = evaluation.evaluate(model, ROWS, CLASSES)
    assert (
        captured(model)["metrics/0000/loss/total"].tolist()
        != saved["metrics/0000/loss/total"].tolist()
    ), "the evaluation has to have disturbed the metrics, or this shows nothing"
    assert train(model, 6, LAST, saved)[-1] == logs[-1]
    assert_identical(captured(model), final)
    assert evaluation.evaluate(model, ROWS, CLASSES) != scores

    keras.utils.set_random_seed(99)  # another process has other global state
    resumed = model_with_dropout(strategies(2))
    assert train(resumed, 6, LAST, saved)[-1] == logs[-1]
    assert_identical(captured(resumed), final)


def test_each_replicas_own_counts_come_back(strategies: Any) -> None:
    model = model_with_dropout(strategies(2))
    train(model, 0, 2)
    rows = metrics.local_metric_states(model)
    assert rows[0][0] != rows[0][1]  # replicas saw different examples
    model.reset_metrics()
    assert not np.any(metrics.local_metric_states(model)[0])
    metrics.set_local_metric_states(model, rows)
    for before, after in zip(rows, metrics.local_metric_states(model), strict=True):
        np.testing.assert_array_equal(before, after)


def test_a_state_goes_to_another_number_of_replicas(strategies: Any) -> None:
    model = model_with_dropout(strategies(3))
    logs = train(model, 0, 3)
    smaller = model_with_dropout(strategies(2))
    workers = workers_of(strategies(2))
    keras_private.build(smaller, (tf.TensorSpec([None, 6]), tf.TensorSpec([None], tf.int64)))
    state.restore(smaller, workers, checkpoint_of(captured(model)))
    assert weights_sha256(smaller) == weights_sha256(model)
    assert smaller.get_metrics_result()["loss"].numpy() == pytest.approx(logs[-1]["loss"], rel=1e-6)


class Sampling(keras.layers.Layer):
    """Draws at inference, too, as variational autoencoders do."""

    def __init__(self) -> None:
        super().__init__()
        self.seed_generator = keras.random.SeedGenerator(3)

    def call(self, inputs: Any) -> Any:
        return inputs + keras.random.normal(tf.shape(inputs), seed=self.seed_generator)


def test_what_is_drawn_in_evaluation_depends_on_nothing_before(strategies: Any) -> None:
    with strategies(2).scope():
        model = keras.Sequential([keras.layers.Input((2,)), Sampling(), keras.layers.Dense(1)])
        model.compile("sgd", "mse")
    rows = np.zeros((8, 2), np.float32)
    data = tf.data.Dataset.from_tensor_slices((rows, rows[:, :1])).batch(4)
    scores = [tfdp.evaluate(model, rows, rows[:, :1], batch_size=4) for _ in range(2)]
    scores += [tfdp.evaluate(model, data) for _ in range(2)]
    assert scores[0] == scores[1] == scores[2] == scores[3]
    predicted = [tfdp.predict(model, rows, batch_size=4).ravel() for _ in range(2)]
    np.testing.assert_array_equal(*predicted)
    assert len(set(predicted[0])) == 8, "other draws for each batch and replica"


def test_a_second_optimizer_is_part_of_the_state() -> None:
    model = model_with_dropout(tf.distribute.get_strategy())
    model.second = keras.optimizers.Adam()
    model.second.build(model.trainable_variables)
    train(model, 0, 1)
    model.second.apply([tf.ones_like(weight) for weight in model.trainable_variables])
    saved = captured(model)
    assert sum("momentum" in name for name in saved) >= len(model.trainable_variables)
    again = model_with_dropout(tf.distribute.get_strategy())
    again.second = keras.optimizers.Adam()
    again.second.build(again.trainable_variables)
    train(again, 0, 1)
    checkpoint = checkpoint_of(saved)
    state.check(again, checkpoint.places)
    state.restore(again, workers_of(tf.distribute.get_strategy()), checkpoint)
    for mine, other in zip(again.second.variables, model.second.variables, strict=True):
        np.testing.assert_array_equal(mine.numpy(), other.numpy())


def test_the_state_of_another_model_is_refused(strategies: Any) -> None:
    model = model_with_dropout(strategies(1))
    train(model, 0, 1)
    saved = captured(model)
    before = weights_sha256(model)
    state.check(model, checkpoint_of(saved).places)
    lacking = dict(list(saved.items())[1:])
    with pytest.raises(tfdp.BadInput, match=r"another model: model variable 0 was .*more"):
        state.check(model, checkpoint_of(lacking).places)
    with pytest.raises(tfdp.BadInput, match=r"model variable \d was .*surplus.* is nothing"):
        surplus = saved | {"model/9999/surplus": np.zeros(1)}
        state.check(model, checkpoint_of(surplus).places)
    first = next(iter(saved))
    with pytest.raises(tfdp.BadInput, match=r"\[2, 2\]"):
        state.check(model, checkpoint_of(saved | {first: np.zeros((2, 2))}).places)
    assert weights_sha256(model) == before


def test_the_digest_of_weights_is_of_all_bytes_in_order() -> None:
    model = model_with_dropout(tf.distribute.get_strategy())
    data = b"".join(weight.numpy().astype("<f4").tobytes() for weight in model.weights)
    assert weights_sha256(model) == hashlib.sha256(data).hexdigest()


def trained(*calls: dict[str, int]) -> list[np.ndarray]:
    """Weights of a model with dropout after several calls of fit."""
    keras.utils.set_random_seed(4)
    hidden = [keras.layers.Dense(8, "relu"), keras.layers.Dropout(0.5)]
    model = keras.Sequential([keras.layers.Input((6,)), *hidden, keras.layers.Dense(3)])
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    for call in calls:
        tfdp.fit(model, ROWS, CLASSES, batch_size=5, verbose=0, **call)
    return [np.asarray(weight) for weight in model.get_weights()]


def test_a_fit_that_goes_on_at_its_epoch_is_one_fit() -> None:
    whole = trained({"epochs": 4})
    parts = trained({"epochs": 1}, {"initial_epoch": 1, "epochs": 4})
    assert all(np.array_equal(one, other) for one, other in zip(whole, parts, strict=True))


def test_a_second_fit_sees_another_order_and_draws_afresh(monkeypatch: Any) -> None:
    begun: list[tuple[int, int]] = []
    original = run_epochs

    def noting(*args: Any, **kwargs: Any) -> Any:
        begun.append((kwargs["first_step"], kwargs["draws_from"]))
        return original(*args, **kwargs)

    monkeypatch.setattr("tfdp.trainer.fitting.run_epochs", noting)
    twice = trained({"epochs": 1}, {"epochs": 1})
    assert begun == [(0, 0), (0, STEPS)]
    assert not all(
        np.array_equal(one, other) for one, other in zip(twice, trained({"epochs": 2}), strict=True)
    )
