"""One script for all that workers do as one: run by plain Keras, and by workers through tfdp.

``python fit_cases.py FOLDER CASE…`` writes ``FOLDER/<worker>/<case>.json`` for each case: what the
case returned. Without TF_CONFIG it is plain Keras that computes them. Models are float64, so that
a difference is a fault and not rounding.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras.optimizers import SGD

import tfdp
from cluster.spec import from_environment
from tfdp.data.order import Order

CLUSTER = from_environment()
WORKER = 0 if CLUSTER is None else CLUSTER.index
LAST_WORKER = 0 if CLUSTER is None else CLUSTER.size - 1
EXAMPLES = 50  # in batches of 7: 3 + 4 on two workers, and a last batch of 1
CLASSES = 3

CASES: dict[str, Callable[[], Any]] = {}
strategy: tf.distribute.Strategy
folder: Path  # this worker's


def case(function: Callable[[], Any]) -> Callable[[], Any]:
    CASES[function.__name__] = function
    return function


def fit(model: keras.Model, *args: Any, **options: Any) -> dict[str, Any]:
    """Trains by plain Keras or by tfdp, and tells all that may be compared."""
    options.setdefault("shuffle", False)
    if CLUSTER is None:
        history = model.fit(*args, verbose=0, **options)
    else:
        history = tfdp.fit(model, *args, verbose=0, **options)
    return {
        "history": history.history,
        "epochs": history.epoch,
        "weights": flat(model.get_weights()),
        "updates": int(model.optimizer.iterations.numpy()),
    }


def evaluate(model: keras.Model, *args: Any, **options: Any) -> dict[str, Any]:
    if CLUSTER is None:
        return model.evaluate(*args, verbose=0, return_dict=True, **options)
    return tfdp.evaluate(model, *args, **options)


def predict(model: keras.Model, *args: Any, **options: Any) -> Any:
    if CLUSTER is None:
        return model.predict(*args, verbose=0, **options).tolist()
    return tfdp.predict(model, *args, **options).tolist()


def flat(weights: list[np.ndarray]) -> list[float]:
    return np.concatenate([weight.ravel() for weight in weights]).tolist()


def numbers(examples: int = EXAMPLES, seed: int = 1) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(examples, 6)), rng.integers(0, CLASSES, examples)


def classifier(
    optimizer: Callable[[], keras.optimizers.Optimizer] = lambda: keras.optimizers.Adam(0.05),
) -> keras.Model:
    keras.utils.set_random_seed(5)
    with strategy.scope():
        model = keras.Sequential(
            [
                keras.layers.Input((6,)),
                keras.layers.Dense(8, activation="tanh"),
                keras.layers.Dense(CLASSES),
            ]
        )
        model.compile(
            optimizer=optimizer(),
            loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            metrics=["accuracy"],
        )
    return model


# What plain Keras computes as well, on one.


@case
def tutorial() -> Any:
    """The multi-worker tutorial: a repeated and batched dataset, a small convolutional net."""
    keras.config.set_floatx("float32")
    keras.config.set_dtype_policy("float32")
    keras.utils.set_random_seed(3)
    rng = np.random.default_rng(3)
    images = rng.random((60, 12, 12, 1), np.float32)
    labels = rng.integers(0, 10, 60)
    examples = tf.data.Dataset.from_tensor_slices((images, labels))
    dataset = examples.shuffle(60, seed=4).repeat().batch(12)
    with strategy.scope():
        model = keras.Sequential(
            [
                keras.layers.Input((12, 12, 1)),
                keras.layers.Conv2D(8, 3, activation="relu"),
                keras.layers.MaxPooling2D(),
                keras.layers.Flatten(),
                keras.layers.Dense(16, activation="relu"),
                keras.layers.Dense(10),
            ]
        )
        model.compile(
            loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            optimizer=SGD(0.1),
            metrics=["accuracy"],
        )
    try:
        return fit(model, dataset, epochs=3, steps_per_epoch=7)
    finally:
        keras.config.set_floatx("float64")
        keras.config.set_dtype_policy("float64")


@case
def shuffled() -> Any:
    """tfdp's own order: plain Keras is given the examples in that order, epoch by epoch."""
    features, labels = numbers()
    model = classifier()
    if CLUSTER is not None:
        source = tfdp.from_arrays(features, labels)
        return fit(model, source, batch_size=7, epochs=2, shuffle=True, seed=11)["weights"]
    order = Order(EXAMPLES, global_batch_size=7, seed=11)
    for epoch in range(2):
        places = order.indices(tf.constant(epoch, tf.int64), tf.range(EXAMPLES, dtype=tf.int64))
        last = fit(model, features[places.numpy()], labels[places.numpy()], batch_size=7)
    return last["weights"]


@case
def callbacks_of_keras() -> Any:
    """They decide by the logs: every worker has to decide alike, and as on one."""
    scheduler = keras.callbacks.LearningRateScheduler(lambda epoch, rate: rate * 0.9)
    plateau = keras.callbacks.ReduceLROnPlateau("loss", factor=0.5, patience=1, min_delta=0.05)
    early = keras.callbacks.EarlyStopping(
        "val_loss", patience=2, min_delta=0.01, restore_best_weights=True
    )
    return fit(
        classifier(lambda: SGD(0.5)),
        *numbers(),
        batch_size=7,
        epochs=30,
        validation_data=numbers(20, seed=2),
        callbacks=[scheduler, plateau, early],
    )


@case
def evaluating() -> Any:
    """Arrays and datasets of all sizes, fewer examples than workers among them."""
    model = classifier()
    scores = {}
    for examples in (1, 2, EXAMPLES):
        features, labels = numbers(examples)
        dataset = tf.data.Dataset.from_tensor_slices((features, labels)).batch(7)
        scores[f"{examples} of arrays"] = evaluate(model, features, labels, batch_size=7)
        scores[f"{examples} of a dataset"] = evaluate(model, dataset)
    weights = np.linspace(0, 1, EXAMPLES)
    scores["weighted"] = evaluate(model, features, labels, batch_size=7, sample_weight=weights)
    scores["two batches"] = evaluate(model, dataset, steps=2)
    return scores


@case
def predicting() -> Any:
    model = classifier()
    rows = {}
    for examples in (1, 2, EXAMPLES):
        features, _ = numbers(examples)
        options = tf.data.Options()
        options.experimental_distribute.auto_shard_policy = (
            tf.data.experimental.AutoShardPolicy.DATA
        )
        dataset = tf.data.Dataset.from_tensor_slices(features).batch(7).with_options(options)
        rows[f"{examples} of arrays"] = predict(model, features, batch_size=7)
        rows[f"{examples} of a dataset"] = predict(model, dataset)
    return rows


@case
def learning_rate_set_by_the_chief() -> Any:
    """At every place where a callback may set it."""

    class Sets(keras.callbacks.Callback):
        def __init__(self) -> None:
            super().__init__()
            self.rates: list[float] = []

        def set(self, rate: float) -> None:
            if WORKER == 0:
                self.model.optimizer.learning_rate = rate

        def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
            self.set([0.3, 0.2, 0.25][epoch])

        def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
            if batch == 1:
                self.set(0.05)

        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            self.rates.append(float(self.model.optimizer.learning_rate.numpy()))
            if batch == 3:
                self.set(0.4)

    sets = Sets()
    model = classifier(lambda: SGD(0.01))
    return fit(model, *numbers(), batch_size=12, epochs=3, callbacks=[sets]) | {"rates": sets.rates}


@case
def stop_decided_by_the_last_worker() -> Any:
    class Stops(keras.callbacks.Callback):
        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            if WORKER == LAST_WORKER and int(self.model.optimizer.iterations.numpy()) == 8:
                self.model.stop_training = True

    told = fit(classifier(), *numbers(), batch_size=12, epochs=9, callbacks=[Stops()])
    return told


@case
def files_of_two() -> Any:
    """FILE sharding: each of two workers reads one file, and gives half of every batch."""
    features, labels = numbers(48)
    paths = []
    for part in range(2):
        paths.append(str(folder / f"part-{part}.tfrecord"))
        with tf.io.TFRecordWriter(paths[-1]) as writer:
            for row, label in zip(features[part::2], labels[part::2], strict=True):
                writer.write(np.append(row, label).tobytes())

    def parsed(record: tf.Tensor) -> Any:
        values = tf.reshape(tf.io.decode_raw(record, tf.float64), [7])
        return values[:6], tf.cast(values[6], tf.int64)

    model = classifier()
    if CLUSTER is None:  # the batches that two workers with a file each make together
        halves = [tf.data.TFRecordDataset(path).map(parsed).batch(6) for path in paths]
        joined = tf.data.Dataset.zip(*halves).map(
            lambda a, b: tuple(tf.concat(pair, axis=0) for pair in zip(a, b, strict=True))
        )
        return fit(model, joined.repeat(), epochs=2, steps_per_epoch=4)
    options = tf.data.Options()
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.FILE
    dataset = tf.data.TFRecordDataset(paths).map(parsed).batch(12).with_options(options)
    return fit(model, dataset, epochs=2, steps_per_epoch=4)


# What only several workers have.


@case
def writers() -> Any:
    """Callbacks that write: which files each worker has in its own folder afterwards."""
    mine = folder / "written"
    mine.mkdir()
    callbacks = [
        keras.callbacks.ModelCheckpoint(
            str(mine / "best.keras"), save_best_only=True, monitor="loss"
        ),
        keras.callbacks.CSVLogger(str(mine / "log.csv")),
        keras.callbacks.TensorBoard(str(mine / "curves")),
    ]
    told = fit(classifier(), *numbers(), batch_size=7, epochs=2, callbacks=callbacks)
    files = sorted(path.name for path in mine.iterdir())
    csv = (mine / "log.csv").read_text() if "log.csv" in files else None
    return {"files": files, "csv": csv, "told": told}


@case
def read_slices() -> Any:
    """Which examples each worker reads of a source."""
    features, labels = numbers(20_000)
    seen: list[int] = []

    class Watched(tfdp.Source):
        def __len__(self) -> int:
            return len(features)

        def read(self, indices: tf.Tensor) -> Any:
            def note(places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
                seen.extend(places.tolist())
                return features[places], labels[places]

            x, y = tf.numpy_function(note, [indices], [tf.float64, tf.int64])
            return tf.ensure_shape(x, [None, 6]), tf.ensure_shape(y, [None])

    fit(classifier(), Watched(), batch_size=24, steps_per_epoch=50, shuffle=True)
    return {"seen": seen}


class LooksTwice(keras.Sequential):
    """Looks at a batch once more after the update, which changes moving averages again."""

    def train_step(self, data: Any) -> Any:
        logs = super().train_step(data)
        self(data[0], training=True)
        return logs


@case
def batch_normalization() -> Any:
    """Each worker normalizes by its own part; what it averages for later is all workers'."""
    features, labels = numbers(24)
    halves = np.split(features, 2)
    found = {
        "mean of halves": np.mean([half.mean(axis=0) for half in halves], axis=0).tolist(),
        "variance of halves": np.mean([half.var(axis=0) for half in halves], axis=0).tolist(),
    }
    for kind in (keras.Sequential, LooksTwice):
        keras.utils.set_random_seed(5)
        with strategy.scope():
            normalize = keras.layers.BatchNormalization(momentum=0.5)
            model = kind([keras.layers.Input((6,)), normalize, keras.layers.Dense(CLASSES)])
            model.compile(SGD(0.1), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        fit(model, features, labels, batch_size=24)
        found[kind.__name__] = {
            "weights": flat(model.get_weights()),
            "mean": normalize.moving_mean.numpy().tolist(),
            "variance": normalize.moving_variance.numpy().tolist(),
        }
    return found


@case
def model_of_no_scope() -> Any:
    """It would train alone."""
    model = keras.Sequential([keras.layers.Input((6,)), keras.layers.Dense(CLASSES)])
    model.compile("sgd", "mse")
    try:
        fit(model, *numbers(), batch_size=7)
    except tfdp.BadInput as error:
        return {"refused": str(error)}
    return {"refused": None}


@case
def fault_of_worker_1() -> Any:
    """The last case of a group, which ends by it."""

    class Breaks(keras.callbacks.Callback):
        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            if WORKER == 1 and epoch == 1:
                raise ZeroDivisionError("the callback of worker 1 broke")

    fit(classifier(), *numbers(), batch_size=7, epochs=5, callbacks=[Breaks()])


def main() -> None:
    global strategy, folder
    folder = Path(sys.argv[1]) / str(WORKER)
    folder.mkdir(parents=True)
    keras.config.set_floatx("float64")
    keras.config.set_dtype_policy("float64")
    strategy = (
        tf.distribute.get_strategy()
        if CLUSTER is None
        else tf.distribute.MultiWorkerMirroredStrategy()
    )
    for name in sys.argv[2:]:
        print(f"case {name}", flush=True)
        result = CASES[name]()
        (folder / f"{name}.json").write_text(json.dumps(result))


if __name__ == "__main__":
    main()
