"""Fails when a version of Keras moves the private parts that ``tfdp.step.keras_private`` uses."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras.src.backend.common.variables import Variable as KerasVariable
from keras.src.backend.tensorflow.optimizer import TFOptimizer
from keras.src.backend.tensorflow.trainer import TensorFlowTrainer as TFTrainer
from keras.src.losses import loss as loss_module
from keras.src.optimizers.base_optimizer import BaseOptimizer
from keras.src.trainers import compile_utils

from tfdp.step import keras_private
from tfdp.step.share import Share

LOSS_FUNCTIONS = (
    "scale_loss_for_distribution",
    "unscale_loss_for_distribution",
    "apply_mask",
    "reduce_values",
)


def compiled(strategy: tf.distribute.Strategy, optimizer: Any = "adam") -> keras.Model:
    with strategy.scope():
        model = keras.Sequential([keras.layers.Input((3,)), keras.layers.Dense(2)])
        model.compile(optimizer, "mse", metrics=["mae"])
    return model


@pytest.mark.parametrize("replicas", [1, 2])
def test_build_makes_every_variable_that_training_needs(replicas: int, strategies: Any) -> None:
    model = compiled(strategies(replicas))
    weights = model.get_weights()
    keras_private.build(model, (tf.TensorSpec([None, 3]), tf.TensorSpec([None, 2])))
    paths = [variable.path for variable in model.optimizer.variables]
    assert len(paths) == 2 + 2 * 2, "Adam: iteration, learning rate, and two for each weight"
    assert [variable.path for metric in model.metrics for variable in metric.variables] == [
        "loss/total",
        "loss/count",
        "mean_absolute_error/total",
        "mean_absolute_error/count",
    ]
    for before, after in zip(weights, model.get_weights(), strict=True):
        np.testing.assert_array_equal(before, after)

    @tf.function
    def train() -> None:  # would raise if it had to create a variable
        batch = tf.ones((2, 3)), tf.zeros((2, 2))
        model.distribute_strategy.run(model.train_step, args=(batch,))

    train()
    assert model.optimizer.iterations.numpy() == 1
    assert [variable.path for variable in model.optimizer.variables] == paths


def applied(
    strategy: tf.distribute.Strategy,
    optimizer: Callable[[], keras.optimizers.Optimizer],
    reduce: Callable[[list[Any]], list[Any]],
) -> tuple[np.ndarray, int]:
    """A weight of zeros after one update by gradients 3 and 5 (of replicas 0 and 1), and how
    often ``reduce`` was called on a replica."""  # fmt: skip
    calls = []
    with strategy.scope():
        weight = keras.Variable(np.zeros(2, np.float32))
        update = optimizer()
        update.build([weight])

    def counted(_: Any, gradients: list[Any], variables: list[Any]) -> list[Any]:
        calls.append(1)
        return reduce(gradients)

    def on_replica() -> None:
        replica = tf.distribute.get_replica_context().replica_id_in_sync_group
        update.apply([tf.fill([2], tf.where(replica == 0, 3.0, 5.0))], [weight])

    @tf.function
    def step() -> None:
        with keras_private.reduced_first(counted):
            strategy.run(on_replica)

    step()
    return weight.numpy(), len(calls) // strategy.num_replicas_in_sync


def total(gradients: list[Any]) -> list[Any]:
    context = tf.distribute.get_replica_context()
    return list(context.all_reduce(tf.distribute.ReduceOp.SUM, gradients))


def test_gradients_are_summed_once_by_reduce_alone(strategies: Any) -> None:
    weight, calls = applied(strategies(2), lambda: keras.optimizers.SGD(1.0), total)
    np.testing.assert_allclose(weight, -8.0)
    assert calls == 1


def test_gradients_are_clipped_after_they_are_reduced(strategies: Any) -> None:
    def sgd() -> keras.optimizers.Optimizer:
        return keras.optimizers.SGD(1.0, clipvalue=4.0)

    # Clipped before: 3 + 4 = 7. After: 8 is clipped to 4.
    np.testing.assert_allclose(applied(strategies(2), sgd, total)[0], -4.0)


def test_an_optimizer_around_another_reduces_once_and_then_unscales(strategies: Any) -> None:
    def scaled() -> keras.optimizers.Optimizer:
        inner = keras.optimizers.SGD(1.0, clipvalue=4.0)
        return keras.optimizers.LossScaleOptimizer(inner, initial_scale=4.0)

    # 3 + 5 = 8, unscaled 2, not clipped. Clipped before unscaling it would be 1.
    weight, calls = applied(strategies(2), scaled, total)
    np.testing.assert_allclose(weight, -2.0)
    assert calls == 1


def test_an_overflow_of_one_replica_skips_the_update_of_all(strategies: Any) -> None:
    made = []

    def scaled() -> keras.optimizers.Optimizer:
        inner = keras.optimizers.SGD(1.0)
        made.append(keras.optimizers.LossScaleOptimizer(inner, initial_scale=4.0))
        return made[0]

    def overflowing(gradients: list[Any]) -> list[Any]:
        replica = tf.distribute.get_replica_context().replica_id_in_sync_group
        factor = tf.where(replica == 1, np.float32("inf"), 1.0)
        return total([gradient * factor for gradient in gradients])

    np.testing.assert_allclose(applied(strategies(2), scaled, overflowing)[0], 0.0)
    assert made[0].dynamic_scale.numpy() == 2.0


@pytest.mark.parametrize("fails", [False, True])
def test_keras_is_as_it_was_afterwards(fails: bool) -> None:
    owners: list[tuple[Any, str]] = [
        (BaseOptimizer, "apply"),
        (keras.optimizers.LossScaleOptimizer, "apply"),
        (TFOptimizer, "_all_reduce_sum_gradients"),
        (keras.random.SeedGenerator, "next"),
        (BaseOptimizer, "_backend_apply_gradients"),
        (KerasVariable, "assign"),
        *((loss_module, name) for name in LOSS_FUNCTIONS),
        (TFTrainer, "_aggregate_additional_loss"),
        (keras.metrics.Mean, "update_state"),
    ]
    before = [vars(owner)[name] for owner, name in owners]
    try:
        with (
            keras_private.reduced_first(lambda _, gradients, variables: gradients),
            keras_private.seeds_drawn_from(tf.constant(0, tf.int64)),
            keras_private.periods_decided(is_update=True, overwrites=False),
            keras_private.assignments_noted(lambda each: None),
            keras_private.losses_of_shares(
                lambda: Share(tf.constant(1), tf.constant(1), 1, may_be_empty=False),
                lambda value, given: value,
                lambda kind: None,
            ),
            keras_private.means_of_scalars(lambda metric, value: (value, 1.0)),
        ):
            during = [vars(owner)[name] for owner, name in owners]
            if fails:
                raise ZeroDivisionError
    except ZeroDivisionError:
        pass
    assert [vars(owner)[name] for owner, name in owners] == before
    assert all(new is not old for new, old in zip(during, before, strict=True))


def test_every_optimizer_applies_by_the_function_that_is_replaced() -> None:
    # MultiOptimizer hands its gradients to others, each of which reduces its part.
    replaced = (BaseOptimizer, keras.optimizers.LossScaleOptimizer, keras.optimizers.MultiOptimizer)
    for name in dir(keras.optimizers):
        optimizer = getattr(keras.optimizers, name)
        if isinstance(optimizer, type) and issubclass(optimizer, keras.optimizers.Optimizer):
            definer = next(each for each in optimizer.__mro__ if "apply" in vars(each))
            assert definer in replaced, name


def losses_on(
    strategy: tf.distribute.Strategy, loss: keras.losses.Loss, sizes: list[int], **options: Any
) -> list[float]:
    """Each replica's contribution to the loss, for shares of these sizes of a batch of six rows."""
    shares: dict[int, Share] = {}
    firsts = np.cumsum([0, *sizes])
    rows = np.arange(1, 13, dtype=np.float32).reshape(6, 2) ** 1.5

    def on_replica() -> tf.Tensor:
        replica = tf.distribute.get_replica_context().replica_id_in_sync_group
        first, stop = tf.gather(firsts, replica), tf.gather(firsts, replica + 1)
        share = Share(tf.cast(stop - first, tf.int32), tf.constant(sum(sizes)), len(sizes), True)
        first = tf.minimum(first, len(rows) - 1)
        stop = tf.maximum(stop, first + 1)  # an empty share has a row, too
        here = {name: tf.constant(values)[first:stop] for name, values in options.items()}
        mask = here.pop("mask", None)
        values = tf.constant(rows)[first:stop]
        shares[threading.get_ident()] = share
        prediction = values
        if mask is not None:
            keras.src.backend.set_keras_mask(prediction, mask)
        return share.contribution(loss(tf.zeros_like(prediction), prediction, **here))

    @tf.function
    def run() -> Any:
        with keras_private.losses_of_shares(
            lambda: shares[threading.get_ident()], lambda value, given: value, lambda kind: None
        ):
            return strategy.run(on_replica)

    return [float(each) for each in strategy.experimental_local_results(run())]


WEIGHTS = np.array([1.0, 0.0, 2.0, 4.0, 0.5, 3.0], np.float32)
MASK = np.array([[1, 0], [1, 1], [0, 0], [1, 1], [0, 1], [0, 0]], bool)


@pytest.mark.parametrize("sizes", [[4, 2], [6, 0]])
@pytest.mark.parametrize(
    ("reduction", "options"),
    [
        ("sum_over_batch_size", {}),
        ("sum", {}),
        ("sum_over_batch_size", {"sample_weight": WEIGHTS}),
        ("mean_with_sample_weight", {"sample_weight": WEIGHTS}),
        ("sum_over_batch_size", {"mask": MASK}),
        ("mean", {"mask": MASK}),
        ("sum", {"mask": MASK}),
    ],
)
def test_shares_of_a_loss_add_up_to_it(
    reduction: str, options: dict[str, Any], sizes: list[int], strategies: Any
) -> None:
    class Squares(keras.losses.Loss):
        def call(self, y_true: Any, y_pred: Any) -> Any:
            squares = tf.square(y_true - y_pred)
            return squares if "mask" in options else tf.reduce_mean(squares, axis=-1)

    found = losses_on(strategies(2), Squares(reduction=reduction), sizes, **options)
    whole = losses_on(strategies(1), Squares(reduction=reduction), [6], **options)
    rows = np.arange(1, 13, dtype=np.float32).reshape(6, 2) ** 1.5
    prediction = tf.constant(rows)
    if "mask" in options:
        keras.src.backend.set_keras_mask(prediction, tf.constant(MASK))
    expected = Squares(reduction=reduction)(  # Keras's own, of the whole batch
        tf.zeros_like(prediction), prediction, sample_weight=options.get("sample_weight")
    )
    np.testing.assert_allclose([sum(found), *whole], [expected] * 2, rtol=1e-5)


def test_trackers_of_losses_get_what_is_unscaled() -> None:
    for user in (TFTrainer.train_step, compile_utils.CompileLoss):
        assert inspect.getsource(user).count("loss_module.unscale_loss_for_distribution(") == 1


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, (1, 0)),
        ({"gradient_accumulation_steps": 3}, (3, 0)),
        ({"use_ema": True}, (1, 0)),
        ({"use_ema": True, "ema_overwrite_frequency": 4}, (1, 4)),
    ],
)
def test_periods_of_an_optimizer(options: dict[str, Any], expected: tuple[int, int]) -> None:
    optimizer = keras.optimizers.SGD(0.1, **options)
    assert keras_private.periods(optimizer) == expected
    assert keras_private.periods(keras.optimizers.LossScaleOptimizer(optimizer)) == expected
    optimizer.build([keras.Variable(np.zeros(2, np.float32))])
    due = []
    for _ in range(12):
        due.append(tuple(bool(each) for each in keras_private.due(optimizer)))
        optimizer.apply([tf.ones(2)])
    update_every, overwrite_every = expected
    assert [update for update, _ in due] == [(i + 1) % update_every == 0 for i in range(12)]
    if overwrite_every:
        assert [o for _, o in due] == [(i + 1) % overwrite_every == 0 for i in range(12)]


def test_what_layers_assign_is_noted() -> None:
    noted: list[str] = []
    layer = keras.layers.BatchNormalization()
    layer.build((None, 2))
    with keras_private.assignments_noted(lambda each: noted.append(each.name)):
        layer(tf.ones((4, 2)), training=True)
    assert sorted(noted) == ["moving_mean", "moving_variance"]


def drawn(
    strategy: tf.distribute.Strategy, layer: Callable[[tf.Tensor], tf.Tensor], step: int
) -> list[np.ndarray]:
    """What a random layer makes of ones on each replica at a step, called twice."""

    @tf.function
    def call() -> Any:
        with keras_private.seeds_drawn_from(tf.constant(step, tf.int64)):
            return strategy.run(lambda: tf.stack([layer(tf.ones(64)), layer(tf.ones(64))]))

    return [each.numpy() for each in strategy.experimental_local_results(call())]


LAYERS = {
    "dropout": lambda: keras.layers.Dropout(0.5, seed=7),
    "spatial": lambda: keras.layers.AlphaDropout(0.5, seed=7),
    "noise": lambda: keras.layers.GaussianNoise(1.0, seed=7),
}


@pytest.mark.parametrize("kind", LAYERS)
def test_random_layers_draw_by_step_and_replica(kind: str, strategies: Any) -> None:
    strategy = strategies(2)
    with strategy.scope():
        layer = LAYERS[kind]()
    state = layer.seed_generator.state.numpy()

    def training(ones: tf.Tensor) -> tf.Tensor:
        return layer(ones, training=True)

    outputs = [*drawn(strategy, training, 0), *drawn(strategy, training, 1)]
    rows = [row.tobytes() for output in outputs for row in output]
    assert len(set(rows)) == 8, "two steps, two replicas, two calls"
    again = [*drawn(strategy, training, 0), *drawn(strategy, training, 1)]
    assert rows == [row.tobytes() for output in again for row in output]
    np.testing.assert_array_equal(layer.seed_generator.state.numpy(), state)


def test_layers_of_other_seeds_draw_apart() -> None:
    def noise(seed: int) -> list[np.ndarray]:
        layer = keras.layers.GaussianNoise(1.0, seed=seed)
        training = lambda ones: layer(ones, training=True)  # noqa: E731
        return drawn(tf.distribute.get_strategy(), training, 0)

    assert not np.array_equal(noise(1)[0], noise(2)[0])


def test_each_compile_makes_an_object_that_tells_it_apart() -> None:
    model = keras.Sequential([keras.layers.Input((3,)), keras.layers.Dense(1)])
    assert keras_private.compilation(model) is None
    seen = []
    for loss in ("mse", "mse", None):
        model.compile("sgd", loss)
        seen.append(keras_private.compilation(model))
        assert keras_private.compilation(model) is seen[-1]
    assert len({id(each) for each in seen}) == 3


def test_a_model_is_built_with_its_metrics(strategies: Any) -> None:
    model = compiled(strategies(1))
    assert not keras_private.is_built(model)
    keras_private.build(model, (tf.TensorSpec([None, 3]), tf.TensorSpec([None, 2])))
    assert keras_private.is_built(model)


def test_variables_are_moved_into_the_scope_with_their_values(strategies: Any) -> None:
    strategy = strategies(2)
    model = compiled(strategy)
    optimizer = keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam(0.125))
    metric = keras.metrics.MeanSquaredError()
    metric.update_state([[1.0]], [[4.0]])
    model.compile(optimizer, "mse", metrics=[metric])
    keras_private.move_into_scope(model, [optimizer])
    keras_private.build(model, (tf.TensorSpec([None, 3]), tf.TensorSpec([None, 2])))
    keras_private.move_into_scope(model, [optimizer])
    inner = optimizer.inner_optimizer
    of_metrics = [variable for each in model.metrics for variable in each.variables]
    assert any(each is metric.total for each in of_metrics)
    for variable in (*optimizer.variables, *inner.variables, *of_metrics):
        assert strategy.extended.variable_created_in_scope(variable.value)
    assert {optimizer._distribution_strategy, inner._distribution_strategy} == {strategy}
    assert inner.learning_rate.numpy() == 0.125
    assert metric.result().numpy() == 9.0
    assert metric.total.value.aggregation == tf.VariableAggregation.SUM


def test_on_this_worker_a_model_is_one_of_a_single_process(strategies: Any) -> None:
    model = compiled(strategies(2))
    keras_private.build(model, (tf.TensorSpec([None, 3]), tf.TensorSpec([None, 2])))
    variables = [*model.variables, *(each for m in model.metrics for each in m.variables)]
    before = [variable.value for variable in variables]
    functions = []
    for _ in range(2):
        with keras_private.on_this_worker(model):
            assert model.distribute_strategy is strategies(1)
            assert not any(hasattr(variable.value, "values") for variable in variables)
            loss, _ = model.evaluate(np.ones((3, 3)), np.zeros((3, 2)), verbose=0)
            functions.append(model.test_function)
        assert loss == pytest.approx(np.mean(model(np.ones((1, 3))).numpy() ** 2))
        assert model.distribute_strategy is strategies(2)
        assert all(a.value is b for a, b in zip(variables, before, strict=True))
        assert model.get_metrics_result()["loss"] == 0, "the metrics of training are as before"
    assert functions[0] is functions[1], "traced once"
    assert model.test_function is None


def test_distributed_variables_lack_conversions_that_they_get(strategies: Any) -> None:
    keras_private.let_distributed_variables_be_numbers()
    with strategies(2).scope():
        variable = keras.Variable(2.5)
        plain = tf.Variable(3, dtype=tf.int64)
    assert (float(variable), int(variable), f"{float(variable):.3f}") == (2.5, 2, "2.500")
    assert (float(plain), int(plain)) == (3.0, 3)
    assert isinstance(plain, keras_private.DistributedVariable)


def test_scores_are_named_in_keras_order() -> None:
    model = keras.Sequential([keras.layers.Input((3,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse", metrics=["mae"], weighted_metrics=["mse"])
    expected = model.evaluate(np.ones((2, 3)), np.ones((2, 1)), verbose=0, return_dict=True)
    names = keras_private.names_in_order(model, dict.fromkeys(sorted(expected), 0.0) | {"own": 1.0})
    assert names == [*expected, "own"]
    assert keras_private.names_in_order(model, {"loss": 1.0}) == ["loss"]


@pytest.mark.parametrize(("asked", "asks"), [("auto", False), (False, False), (True, True)])
def test_xla_is_asked_for_by_true(asked: Any, asks: bool) -> None:
    model = keras.Sequential([keras.layers.Input((3,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse", jit_compile=asked)
    assert keras_private.asks_for_xla(model) is asks


def test_every_layer_is_listed_before_its_own_layers() -> None:
    inner = keras.Sequential([keras.layers.Input((3,)), keras.layers.Dense(1, trainable=False)])
    model = keras.Sequential([keras.layers.Input((3,)), inner])
    trainable = {layer.name: layer.trainable for layer in keras_private.layers(model)}
    names = list(trainable)
    assert names.index(model.name) < names.index(inner.name) < names.index(inner.layers[0].name)
    assert trainable[inner.layers[0].name] is False


def test_a_backup_names_the_epoch_to_go_on_with(tmp_path: Any) -> None:
    model = keras.Sequential([keras.layers.Input((3,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    backup = keras.callbacks.BackupAndRestore(str(tmp_path), delete_checkpoint=False)
    assert keras_private.restored_epoch(model, backup) is None
    model.fit(np.ones((2, 3)), np.ones((2, 1)), epochs=3, verbose=0, callbacks=[backup])
    kernel = model.layers[0].kernel.numpy()
    model.layers[0].kernel.assign(np.zeros((3, 1)))
    assert keras_private.restored_epoch(model, backup) == 3
    np.testing.assert_array_equal(model.layers[0].kernel, kernel)
    assert model._initial_epoch is None
