"""What users write in steps, layers and losses is computed as by plain Keras, or it is said.

Every case is trained by ``Model.fit`` in one process and by ``tfdp.fit`` on several replicas with
uneven shares, and all weights and the History are compared.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import ops

import tfdp

ROWS = np.random.default_rng(3).normal(size=(21, 3))
TARGETS = ROWS @ np.array([[1.0], [-2.0], [0.5]]) + 0.3
BATCH = 10  # a last batch of one example: some replicas have none


@pytest.fixture(autouse=True)
def double_precision() -> Any:
    before = keras.config.floatx()
    keras.config.set_floatx("float64")
    keras.config.set_dtype_policy("float64")
    yield
    keras.config.set_floatx(before)
    keras.config.set_dtype_policy(before)


class Stepping(keras.Model):
    """A model without a call, trained by its step alone."""

    def __init__(self) -> None:
        super().__init__()
        self.net = keras.Sequential([keras.layers.Dense(1, kernel_initializer="ones")])
        self.tracker = keras.metrics.Mean(name="tracked")

    def loss_of(self, x: Any, y: Any) -> Any:
        return tf.reduce_mean(tf.square(self.net(x, training=True) - y))

    def changed(self, gradients: list[Any]) -> list[Any]:
        return gradients

    def train_step(self, data: Any) -> Any:
        x, y = data
        with tf.GradientTape() as tape:
            loss = self.loss_of(x, y)
        weights = self.net.trainable_weights
        self.optimizer.apply(self.changed(tape.gradient(loss, weights)), weights)
        self.tracker.update_state(loss)
        return {"tracked": self.tracker.result(), "raw": loss}


class Divided(Stepping):
    def loss_of(self, x: Any, y: Any) -> Any:
        replicas = tf.distribute.get_strategy().num_replicas_in_sync
        return super().loss_of(x, y) / replicas


class AverageLoss(Stepping):
    def loss_of(self, x: Any, y: Any) -> Any:
        squares = tf.reduce_sum(tf.square(self.net(x, training=True) - y), axis=-1)
        return tf.nn.compute_average_loss(squares, global_batch_size=BATCH)


class Summed(Stepping):
    def loss_of(self, x: Any, y: Any) -> Any:
        return tf.reduce_sum(tf.square(self.net(x, training=True) - y)) / 50


class MixedWithKeras(Stepping):
    def loss_of(self, x: Any, y: Any) -> Any:
        rows = self.net(x, training=True)
        return keras.losses.MeanAbsoluteError()(y, rows) + 0.1 * tf.reduce_mean(tf.square(rows))


class ClippedByHand(Stepping):
    def changed(self, gradients: list[Any]) -> list[Any]:
        return [tf.clip_by_norm(each, 0.3) for each in gradients]


class ClippedLater(Stepping):
    """No gradient of the rehearsal is large enough to be clipped."""

    def changed(self, gradients: list[Any]) -> list[Any]:
        changed, _ = tf.clip_by_global_norm(gradients, 5.0)
        return changed

    def loss_of(self, x: Any, y: Any) -> Any:
        factor = tf.where(self.optimizer.iterations > 1, 100.0, 0.01)
        return super().loss_of(x, y) * tf.cast(factor, x.dtype)


class OfJacobian(Stepping):
    """A gradient for each example, each clipped, as in differential privacy."""

    def train_step(self, data: Any) -> Any:
        x, y = data
        with tf.GradientTape() as tape:
            squares = tf.square(self.net(x, training=True) - y)[:, 0]
        weights = self.net.trainable_weights
        slopes = [
            tf.reduce_mean(tf.clip_by_value(each, -0.2, 0.2), axis=0)
            for each in tape.jacobian(squares, weights)
        ]
        self.optimizer.apply(slopes, weights)
        self.tracker.update_state(tf.reduce_mean(squares))
        return {"tracked": self.tracker.result()}


class UpdatedByHand(Stepping):
    def train_step(self, data: Any) -> Any:
        with tf.GradientTape() as tape:
            loss = self.loss_of(*data)
        weights = self.net.trainable_weights
        for weight, slope in zip(weights, tape.gradient(loss, weights), strict=True):
            weight.assign_sub(0.1 * slope / (tf.norm(slope) + 0.1))
        return {"raw": loss}


class NormalizedByHand(Stepping):
    def changed(self, gradients: list[Any]) -> list[Any]:
        norm = tf.linalg.global_norm(gradients)
        return [each / (norm + 0.1) for each in gradients]


class Decorated(Stepping):
    @tf.function
    def train_step(self, data: Any) -> Any:
        return super().train_step(data)


class TwoOptimizers(Stepping):
    """One has a mean of the user's own, the other a loss of Keras's; they are in a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.other = keras.layers.Dense(1, kernel_initializer="ones")
        self.by = {"own": keras.optimizers.Adam(0.1), "keras": keras.optimizers.SGD(0.1)}

    def train_step(self, data: Any) -> Any:
        x, y = data
        losses = {"own": self.loss_of, "keras": self.loss_of_other}
        layers = {"own": self.net, "keras": self.other}
        found = {}
        for name, loss_of in losses.items():
            with tf.GradientTape() as tape:
                found[name] = loss_of(x, y)
            weights = layers[name].trainable_weights
            gradients = tape.gradient(found[name], weights)
            self.by[name].apply_gradients(zip(gradients, weights, strict=True))
        return found

    def loss_of_other(self, x: Any, y: Any) -> Any:
        return keras.losses.Huber()(y, self.other(x))


class GradientPenalty(Stepping):
    def loss_of(self, x: Any, y: Any) -> Any:
        with tf.GradientTape() as tape:
            tape.watch(x)
            rows = self.net(x)
        slopes = tape.gradient(rows, x)
        return tf.reduce_mean(tf.square(rows - y)) + tf.reduce_mean(tf.norm(slopes, axis=1) ** 4)


class InnerUpdate(Stepping):
    """The loss after an update of each example's own, as in MAML."""

    def loss_of(self, x: Any, y: Any) -> Any:
        def after(example: Any) -> Any:
            with tf.GradientTape() as tape:
                inner = tf.reduce_sum(self.net(example[0][tf.newaxis]) ** 2)
            weights = self.net.trainable_weights
            slopes = tape.gradient(inner, weights)
            kernel, bias = (a - 0.1 * b for a, b in zip(weights, slopes, strict=True))
            return tf.reduce_sum((example[0][tf.newaxis] @ kernel + bias - example[1]) ** 2)

        return tf.reduce_mean(tf.map_fn(after, (x, y), fn_output_signature=x.dtype))


class Covariance(Stepping):
    """Over the whole batch, which ``tfdp.all_gather`` gives each replica."""

    def loss_of(self, x: Any, y: Any) -> Any:
        rows = tfdp.all_gather(self.net(x, training=True))
        centered = rows - tf.reduce_mean(rows, axis=0)
        covariance = tf.reduce_mean(centered * tfdp.all_gather(y))
        return (covariance + 2.0) ** 2 + tf.reduce_mean(tf.square(rows))


class Contrastive(Stepping):
    """Own rows beside the rows of all."""

    def loss_of(self, x: Any, y: Any) -> Any:
        similar = tf.matmul(
            self.net(x), tfdp.all_gather(tf.tanh(self.net(2 * x))), transpose_b=True
        )
        return tf.reduce_mean(tf.reduce_logsumexp(similar, axis=1))


class Counters(keras.layers.Layer):
    """States that a step assigns: a count, a moving sum, a moving average, queues of rows."""

    def build(self, shape: Any) -> None:
        options = {"initializer": "zeros", "trainable": False}
        self.count = self.add_weight(shape=(), dtype="int64", **options)
        self.moving_sum = self.add_weight(shape=(shape[-1],), **options)
        self.average = self.add_weight(shape=(shape[-1],), **options)
        self.largest = self.add_weight(shape=(shape[-1],), **options)
        self.slow_average = self.add_weight(
            shape=(shape[-1],), **(options | {"initializer": "ones"})
        )
        self.slow_sum = self.add_weight(shape=(shape[-1],), **(options | {"initializer": "ones"}))
        self.large_count = self.add_weight(
            shape=(), dtype="int64", trainable=False, initializer=keras.initializers.Constant(90000)
        )
        self.newest_first = self.add_weight(shape=(BATCH + 2, shape[-1]), **options)
        self.newest_last = self.add_weight(shape=(BATCH + 2, shape[-1]), **options)

    def call(self, x: Any, training: bool = False) -> Any:
        if training:
            self.count.assign_add(ops.sum(ops.cast(x[:, 0] > 0, "int64")))
            self.moving_sum.assign(0.9 * self.moving_sum + 0.1 * ops.sum(x, axis=0))
            self.largest.assign(ops.maximum(self.largest, ops.max(x, axis=0)))
            self.average.assign(0.9 * self.average + 0.1 * ops.mean(x, axis=0))
            self.slow_average.assign(0.9995 * self.slow_average + 0.0005 * ops.mean(x, axis=0))
            self.slow_sum.assign(0.999 * self.slow_sum + 0.001 * ops.sum(x, axis=0))
            self.large_count.assign_add(ops.cast(ops.shape(x)[0], "int64"))
            rows = ops.shape(x)[0]
            self.newest_first.assign(ops.concatenate([x, self.newest_first[:-rows]], axis=0))
            self.newest_last.assign(ops.concatenate([self.newest_last[rows:], x], axis=0))
        return x


class Terms(keras.layers.Layer):
    """Loss terms of each kind: a value for each example, a sum, a mean."""

    def call(self, x: Any) -> Any:
        self.add_loss(0.01 * ops.square(x))
        self.add_loss(0.02 * ops.sum(ops.abs(x)))
        self.add_loss(0.03 * ops.mean(x**4))
        return x


class ClippingSGD(keras.optimizers.SGD):
    def apply(self, grads: Any, trainable_variables: Any = None) -> Any:
        return super().apply([ops.clip(each, -0.2, 0.2) for each in grads], trainable_variables)


class ClippingPairs(keras.optimizers.SGD):
    def apply_gradients(self, grads_and_vars: Any) -> Any:
        return super().apply_gradients([(ops.clip(g, -0.2, 0.2), v) for g, v in grads_and_vars])


def stepping(kind: type[keras.Model]) -> Callable[[], keras.Model]:
    def build() -> keras.Model:
        model = kind()
        model.compile(keras.optimizers.SGD(0.1))
        return model

    return build


def functional(*layers: Any, loss: Any = "mse", optimizer: Any = None) -> Callable[[], Any]:
    def build() -> keras.Model:
        made = [layer() for layer in layers]
        dense = keras.layers.Dense(1, kernel_initializer="ones")
        model = keras.Sequential([keras.layers.Input((3,)), *made, dense])
        model.compile(optimizer() if optimizer else keras.optimizers.SGD(0.1), loss)
        return model

    return build


EXACT = {
    **{
        kind.__name__: stepping(kind)
        for kind in (
            *(Stepping, Divided, AverageLoss, Summed, MixedWithKeras, ClippedByHand),
            *(
                NormalizedByHand,
                ClippedLater,
                OfJacobian,
                UpdatedByHand,
                Decorated,
                TwoOptimizers,
                GradientPenalty,
                InnerUpdate,
            ),
            *(Covariance, Contrastive),
        )
    },
    "states": functional(Counters),
    "terms": functional(Terms),
    "loss function of a mean": functional(loss=lambda y, p: tf.reduce_mean(tf.square(y - p))),
    "loss function of a sum": functional(loss=lambda y, p: tf.reduce_sum(tf.square(y - p)) / 30),
    "optimizer with apply": functional(optimizer=lambda: ClippingSGD(0.1)),
    "optimizer with apply_gradients": functional(optimizer=lambda: ClippingPairs(0.1)),
}


def all_variables(model: keras.Model) -> list[np.ndarray]:
    found = list(model.variables)
    for optimizer in (model.optimizer, *getattr(model, "by", {}).values()):
        found += [each for each in optimizer.variables if "seed" not in each.path]
    return [np.asarray(each.numpy()) for each in found]


@pytest.mark.parametrize("replicas", [1, 3])
@pytest.mark.parametrize("case", EXACT)
def test_replicas_compute_what_keras_does(
    case: str, replicas: int, strategies: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    data = {"x": ROWS, "y": TARGETS, "batch_size": BATCH, "epochs": 2, "shuffle": False}
    expected = EXACT[case]()
    history = expected.fit(**data, verbose=0).history
    with strategies(replicas).scope():
        model = EXACT[case]()
    found = tfdp.fit(model, **data, verbose=0).history
    assert "tfdp: " not in capsys.readouterr().err
    assert found.keys() == history.keys()
    for name, values in history.items():
        np.testing.assert_allclose(found[name], values, rtol=1e-9, err_msg=name)
    for ours, keras_own in zip(all_variables(model), all_variables(expected), strict=True):
        np.testing.assert_allclose(ours, keras_own, rtol=1e-9, atol=1e-12)


class Product(keras.layers.Layer):
    """The balance term of a mixture of experts: a product of means over the batch."""

    def call(self, x: Any) -> Any:
        self.add_loss(ops.mean(x[:, 0]) * ops.mean(x[:, 1]))
        return x


class WholeBatch(Stepping):
    def loss_of(self, x: Any, y: Any) -> Any:
        rows = self.net(x)
        return tf.reduce_mean(tf.square(tf.matmul(rows, rows, transpose_b=True)))


class SumsAndMeans(Stepping):
    def loss_of(self, x: Any, y: Any) -> Any:
        rows = self.net(x)
        return tf.reduce_mean(tf.square(rows - y)) + tf.reduce_sum(tf.abs(rows))


class Ring(keras.layers.Layer):
    """A queue with a pointer, of which the parts' values don't make the whole's."""

    def build(self, shape: Any) -> None:
        self.rows = self.add_weight(shape=(64, shape[-1]), initializer="ones", trainable=False)

    def call(self, x: Any, training: bool = False) -> Any:
        if training:
            rows = ops.shape(x)[0]
            self.rows.assign(ops.concatenate([x * self.rows[:rows], self.rows[rows:]], axis=0))
        return x


class Maximum(keras.layers.Layer):
    def build(self, shape: Any) -> None:
        options = {"initializer": "zeros", "trainable": False, "dtype": "int32"}
        self.largest = self.add_weight(shape=(), **options)

    def call(self, x: Any) -> Any:
        self.largest.assign(ops.cast(ops.max(ops.abs(x)) * 100, "int32"))
        return x


class SumOfMeans(Stepping):
    def __init__(self) -> None:
        super().__init__()
        self.tracker = keras.metrics.Sum(name="summed")


class Spread(Stepping):
    """Its tracker gets a number that is neither a mean nor a sum."""

    def train_step(self, data: Any) -> Any:
        found = super().train_step(data)
        self.tracker.update_state(tf.math.reduce_std(data[0]))
        return found


class Derived(Stepping):
    """Computes a number from a metric's result."""

    def train_step(self, data: Any) -> Any:
        super().train_step(data)
        return {"percent": 100 * self.tracker.result()}


class Seen(keras.metrics.Metric):
    """A set of what it has seen, which grows by a batch only once."""

    def __init__(self) -> None:
        super().__init__(name="seen")
        self.seen = self.add_variable((50,), "zeros", name="seen")

    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> None:
        places = ops.cast(ops.abs(y_true[:, 0]) * 1e6, "int32") % 50
        self.seen.assign(ops.maximum(self.seen, ops.max(ops.one_hot(places, 50), axis=0)))

    def result(self) -> Any:
        return ops.sum(self.seen)


class PastKeras(keras.layers.Layer):
    def build(self, shape: Any) -> None:
        self.sum = self.add_weight(shape=(), initializer="zeros", trainable=False, name="sum")

    def call(self, x: Any) -> Any:
        self.sum.value.assign_add(tf.reduce_sum(x))
        return x


def seeing() -> keras.Model:
    model = functional()()
    model.compile("sgd", "mse", metrics=[Seen()])
    return model


@pytest.mark.parametrize(
    ("build", "said"),
    [
        (stepping(Derived), "computes percent from metrics' results"),
        (seeing, "metric seen keeps states"),
        (functional(PastKeras), "by way of its value, past keras"),
        (functional(Product), "add_loss of layer product"),
        (stepping(WholeBatch), "from a whole batch are neither"),
        (stepping(SumsAndMeans), "If it adds sums to means"),
        (functional(Ring), "replicas' values are averaged"),
        (stepping(SumOfMeans), "metric summed keeps states"),
        (stepping(Spread), "updates metric tracked with a number"),
    ],
)
def test_what_replicas_compute_otherwise_is_said_once_by_name(
    build: Callable[[], keras.Model],
    said: str,
    strategies: Any,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with strategies(2).scope():
        model = build()
    before = [each.numpy() for each in model.variables]
    tfdp.fit(model, ROWS, TARGETS, batch_size=BATCH, epochs=0, verbose=0)
    for now, then in zip(model.variables, before, strict=False):
        np.testing.assert_array_equal(now.numpy(), then)
    tfdp.fit(model, ROWS, TARGETS, batch_size=BATCH, verbose=0)
    message = capsys.readouterr().err
    assert message.count("tfdp: ") == 1
    assert said.lower() in message.lower()
    assert "metric" in said or "past" in said or "tfdp.all_gather" in message


class Weighted(Stepping):
    """Divides by a sum over the batch."""

    def loss_of(self, x: Any, y: Any) -> Any:
        return tf.reduce_sum(y * tf.square(self.net(x))) / tf.reduce_sum(y)


def test_parts_that_are_alike_by_chance_are_not_taken_for_proof(
    strategies: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """The first 7 of 12 examples have 7 twelfths of all weights; the first 5 have less than 5."""
    weights = np.array([1, 1, 1, 1, 1, 4, 5, 2, 2, 2, 2, 2.0])[:, np.newaxis]
    assert weights[:7].sum() / 7 == weights[7:].sum() / 5
    with strategies(2).scope():
        model = stepping(Weighted)()
    tfdp.fit(model, ROWS[:12], weights, batch_size=12, verbose=0)
    assert "or divides by a count of it" in capsys.readouterr().err


def test_an_integer_that_replicas_cannot_combine_is_refused(strategies: Any) -> None:
    with strategies(2).scope():
        model = functional(Maximum)()
    with pytest.raises(tfdp.BadInput, match=r"assigns .*maximum.*int32.*tfdp.all_gather"):
        tfdp.fit(model, ROWS, TARGETS, batch_size=BATCH, verbose=0)


class QueueFirst(keras.layers.Layer):
    def build(self, shape: Any) -> None:
        self.rows = self.add_weight(shape=(20, shape[-1]), initializer="ones", trainable=False)

    def call(self, x: Any, training: bool = False) -> Any:
        if training:
            rows = ops.shape(x)[0]
            self.rows.assign(ops.concatenate([x, self.rows[:-rows]], axis=0))
        return x


@pytest.mark.parametrize("is_second_fit", [False, True])
@pytest.mark.parametrize(
    ("build", "message"),
    [
        (stepping(ClippedByHand), r"accumulate_steps is 2, but .*clipnorm"),
        (functional(QueueFirst), r"assigns .*queue_first.* once for each batch"),
        (stepping(Covariance), r"accumulate_steps is 2, but tfdp.all_gather"),
    ],
)
def test_what_micro_batches_can_not_do_is_refused(
    build: Callable[[], keras.Model], message: str, is_second_fit: bool, strategies: Any
) -> None:
    """Also if the rules are known from a fit without micro-batches."""
    data = {"x": ROWS[:20], "y": TARGETS[:20], "batch_size": BATCH, "verbose": 0}
    with strategies(2).scope():
        model = build()
    if is_second_fit:
        tfdp.fit(model, **data)
    with pytest.raises(tfdp.BadInput, match=message):
        tfdp.fit(model, **data, accumulate_steps=2)


class CountingSteps(Stepping):
    """Counts in variables that Keras does not see being assigned."""

    def __init__(self) -> None:
        super().__init__()
        self.steps = tf.Variable(0, trainable=False)
        self.count = self.add_weight(shape=(), dtype="int32", initializer="zeros", trainable=False)

    def train_step(self, data: Any) -> Any:
        self.steps.assign_add(1)
        self.count.value.assign_add(1)
        return super().train_step(data)


def test_what_precedes_the_first_step_counts_nothing(strategies: Any) -> None:
    for replicas in (1, 2):
        with strategies(replicas).scope():
            model = stepping(CountingSteps)()
        tfdp.fit(model, ROWS[:20], TARGETS[:20], batch_size=BATCH, verbose=0)
        assert [int(each.numpy()) for each in (model.steps, model.count)] == [2, 2]


class OfGraph(keras.layers.Layer):
    def call(self, x: Any) -> Any:
        assert x.op is not None  # which a value outside of a graph does not have
        return x


def test_a_layer_for_graphs_alone_trains_unrehearsed(
    strategies: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    data = {"x": ROWS, "y": TARGETS, "batch_size": BATCH, "shuffle": False, "verbose": 0}
    expected = functional(OfGraph)()
    expected.fit(**data)
    with strategies(2).scope():
        model = functional(OfGraph)()
    tfdp.fit(model, **data)
    assert "train_step could not be tried" in capsys.readouterr().err
    for ours, keras_own in zip(all_variables(model), all_variables(expected), strict=True):
        np.testing.assert_allclose(ours, keras_own, rtol=1e-9, atol=1e-12)


class OfTen(keras.layers.Layer):
    def call(self, x: Any) -> Any:
        return ops.reshape(x, (BATCH, 3))


class StepOfTen(Stepping):
    def loss_of(self, x: Any, y: Any) -> Any:
        return super().loss_of(tf.reshape(x, (BATCH, 3)), y)


@pytest.mark.parametrize("build", [functional(OfTen), stepping(StepOfTen)])
def test_a_batch_size_that_a_model_knows_is_refused(
    build: Callable[[], keras.Model], strategies: Any
) -> None:
    data = {"x": ROWS[:20], "y": TARGETS[:20], "batch_size": BATCH, "verbose": 0}
    build().fit(**data)
    tfdp.fit(build(), **data)
    with strategies(2).scope():
        model = build()
    with pytest.raises(tfdp.BadInput, match=r"fails on 5 examples, .* one of 2 replicas gets"):
        tfdp.fit(model, **data)


class Printing(Stepping):
    def train_step(self, data: Any) -> Any:
        if tf.executing_eagerly() and len(data[0]) == 7:
            raise ValueError("seven rows")
        return super().train_step(data)


def test_a_step_that_cannot_be_rehearsed_is_said(
    strategies: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    with strategies(2).scope():
        model = stepping(Printing)()
    tfdp.fit(model, ROWS, TARGETS, batch_size=12, verbose=0)
    assert "train_step could not be tried on 12 examples (seven rows)" in capsys.readouterr().err
