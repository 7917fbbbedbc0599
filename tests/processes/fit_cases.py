"""What workers compute together by tfdp, and some of it by plain Keras.

``python fit_cases.py FOLDER CASE…`` writes the result of each case to
``FOLDER/<worker>/<case>.json``. Without TF_CONFIG plain Keras computes the cases. Models are
float64, so a difference is a fault and not rounding.
"""

from __future__ import annotations

import functools
import hashlib
import json
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras.optimizers import SGD
from tensorflow.data.experimental import AutoShardPolicy

import tfdp
from cluster.spec import from_environment
from tests.exactness.registry import precision
from tfdp.data.order import Order
from tfdp.step.all_reduce import all_reduce_sum
from tfdp.workers.collectives import workers_of
from tfdp.workers.random_state import share_random_state

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
    """Trains by plain Keras or by tfdp, and returns all numbers that a test may compare."""
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


def flat(weights: list[np.ndarray]) -> list[float]:
    return np.concatenate([weight.ravel() for weight in weights]).tolist()


def with_sharding(dataset: tf.data.Dataset, policy: AutoShardPolicy) -> tf.data.Dataset:
    options = tf.data.Options()
    options.experimental_distribute.auto_shard_policy = policy
    return dataset.with_options(options)


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


# Cases that plain Keras computes, too.


@case
def tutorial() -> Any:
    """The multi-worker tutorial: a repeated and batched dataset, a small convolutional net."""
    with precision("float32"):
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
        return fit(model, dataset, epochs=3, steps_per_epoch=7)


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
def bfloat16() -> Any:
    """One update of an embedding and a dense layer, whose gradients are sent as bfloat16."""
    keras.utils.set_random_seed(1)
    with strategy.scope():
        layers = [keras.layers.Embedding(9, 4), keras.layers.Flatten(), keras.layers.Dense(3)]
        model = keras.Sequential([keras.layers.Input((2,), dtype="int32"), *layers])
        model.compile(SGD(1.0), "mse")
    words = np.arange(16, dtype=np.int32).reshape(8, 2) % 9
    options = {} if CLUSTER is None else {"gradient_dtype": "bfloat16"}
    fit(model, words, np.ones((8, 3)), batch_size=8, epochs=1, **options)
    embedding, *dense = model.get_weights()
    return {"embedding": flat([embedding]), "dense": flat(dense)}


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

    return fit(classifier(), *numbers(), batch_size=12, epochs=9, callbacks=[Stops()])


@case
def files_of_two() -> Any:
    """FILE sharding: each of two workers reads one file, and gives half of every batch."""
    features, labels = numbers(48)
    paths = []
    for file in range(2):
        paths.append(str(folder / f"{file}.tfrecord"))
        with tf.io.TFRecordWriter(paths[-1]) as writer:
            for row, label in zip(features[file::2], labels[file::2], strict=True):
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
    dataset = tf.data.TFRecordDataset(paths).map(parsed).batch(12)
    return fit(model, with_sharding(dataset, AutoShardPolicy.FILE), epochs=2, steps_per_epoch=4)


def everything(model: keras.Model, x: Any, y: Any = None, **options: Any) -> Any:
    """Trains, evaluates and predicts on the same data."""
    found = fit(model, x() if callable(x) else x, y, **options)
    steps = {} if "steps_per_epoch" not in options else {"steps": options["steps_per_epoch"]}
    if CLUSTER is None:
        scores = model.evaluate(x() if callable(x) else x, y, verbose=0, return_dict=True, **steps)
        rows = model.predict(x() if callable(x) else x, verbose=0, **steps)
    else:
        scores = tfdp.evaluate(model, x() if callable(x) else x, y, **steps)
        rows = tfdp.predict(model, x() if callable(x) else x, **steps)
    return found | {"scores": scores, "rows": rows.tolist()}


class Mixed(keras.Model):
    """Takes ragged numbers, sparse numbers and words of a closed vocabulary."""

    def __init__(self) -> None:
        super().__init__()
        self.words = keras.layers.StringLookup(vocabulary=["a", "b", "c"], num_oov_indices=0)
        self.embedding = keras.layers.Embedding(3, 2)
        self.dense = keras.layers.Dense(1)
        self.embedding.build()
        self.dense.build((None, 8))

    def call(self, inputs: dict[str, Any]) -> Any:
        ragged, sparse = tf.reduce_sum(inputs["ragged"], axis=1), inputs["sparse"]
        # Keras builds models with dense inputs.
        sparse = tf.sparse.to_dense(sparse) if isinstance(sparse, tf.SparseTensor) else sparse
        words = self.embedding(self.words(inputs["text"]))
        return self.dense(tf.concat([tf.reshape(ragged, [-1, 1]), sparse, words], axis=1))


def mixed(examples: int) -> tuple[dict[str, Any], np.ndarray]:
    features = {
        "ragged": tf.ragged.constant([[0.1 * j for j in range(i % 4)] for i in range(examples)]),
        "sparse": tf.sparse.from_dense(np.eye(examples, 5) * np.arange(1.0, examples + 1)[:, None]),
        "text": np.array(["a", "b", "c"], object)[np.arange(examples) % 3],
    }
    return features, np.cos(np.arange(float(examples)))[:, np.newaxis]


@case
def ragged_and_sparse() -> Any:
    """Batches of 4 rows; batches of 2, of which three workers don't all get a row; and arrays."""
    features, labels = mixed(11)
    examples = tf.data.Dataset.from_tensor_slices((features, labels))
    found = {}
    for name, data in {
        "batches of 4": (examples.batch(4),),
        "batches of 2": (examples.batch(2),),
        "arrays": (features, labels),
    }.items():
        keras.utils.set_random_seed(5)
        with strategy.scope():
            model = Mixed()
            model.compile(SGD(0.01), "mse", metrics=["mae"])
        found[name] = everything(model, *data, epochs=2)
    return found


@case
def py_dataset() -> Any:
    """It shuffles itself when an epoch ends, and Keras shuffles its batches."""
    features, labels = numbers()

    class Data(keras.utils.PyDataset):
        def __init__(self) -> None:
            super().__init__()
            self.order = np.arange(EXAMPLES)

        def __len__(self) -> int:
            return -(-EXAMPLES // 7)

        def __getitem__(self, index: int) -> Any:
            places = self.order[7 * index : 7 * index + 7]
            return features[places], labels[places]

        def on_epoch_end(self) -> None:
            np.random.shuffle(self.order)

    model = classifier()
    return {
        "shuffled batches": fit(model, Data(), epochs=3, shuffle=True),
        "in its own order": everything(model, Data(), epochs=2),
    }


@case
def generator() -> Any:
    """Endless, and its batches have different sizes."""
    features, labels = numbers()

    def batches() -> Any:
        while True:
            for first, last in ((0, 9), (9, 20), (20, 21), (21, 50)):
                yield features[first:last], labels[first:last]

    return everything(classifier(), batches, epochs=2, steps_per_epoch=6)


# Cases for several workers only.


@case
def random_state() -> Any:
    """All workers draw alike after what ``connect`` does."""
    before = random.random(), np.random.random()
    share_random_state(workers_of(strategy))
    shuffled = tf.data.Dataset.range(EXAMPLES).shuffle(EXAMPLES)
    after = random.random(), np.random.random(), [int(number) for number in shuffled]
    return {"before": before, "after": after}


@case
def different_data() -> Any:
    """What workers see that their data differs in."""
    features, labels = numbers()
    order = np.random.default_rng(WORKER).permutation(EXAMPLES)
    late = np.arange(EXAMPLES)
    late[30:] = 30 + np.random.default_rng(WORKER).permutation(EXAMPLES - 30)

    def of(places: np.ndarray) -> tf.data.Dataset:
        return tf.data.Dataset.from_tensor_slices((features[places], labels[places])).batch(7)

    model = classifier()
    before = flat(model.get_weights())
    found = {
        "arrays": refusal_or_result(fit, model, features[order], labels[order]),
        "first batch": refusal_or_result(fit, model, of(order)),
    }
    found["is unchanged"] = flat(model.get_weights()) == before
    return found | {
        "later batch": refusal_or_result(functools.partial(fit, epochs=3), model, of(late)),
        "evaluation": refusal_or_result(tfdp.evaluate, model, of(late)),
        "shorter": refusal_or_result(tfdp.evaluate, model, of(late[: 28 + WORKER])),
        "prediction": refusal_or_result(tfdp.predict, model, of(late)),
    }


@case
def unequal_files() -> Any:
    """Datasets of files that don't divide: the mean of their numbers, or why they are refused."""

    def parsed(record: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        number = tf.reshape(tf.strings.to_number(tf.strings.split(record, " ")[0]), [1])
        return number, 0 * number

    def model() -> keras.Model:
        """Its mean absolute error is the mean of the records' numbers."""
        with precision("float32"), strategy.scope():
            dense = keras.layers.Dense(1, kernel_initializer="ones")
            model = keras.Sequential([keras.layers.Input((1,)), dense])
            model.compile(SGD(0.0), "mse", metrics=["mae"])
        return model

    outcomes: dict[str, list[Any]] = {}
    for name in ("one", "uneven"):
        paths = sorted(map(str, (folder.parent / name).iterdir()))
        dataset = tf.data.TFRecordDataset(paths).map(parsed).batch(4)
        for policy in (AutoShardPolicy.FILE, AutoShardPolicy.AUTO):
            sharded = with_sharding(dataset, policy)
            for work in (
                lambda data: tfdp.fit(model(), data, verbose=0).history["mae"][0],
                lambda data: tfdp.evaluate(model(), data)["mae"],
            ):
                outcomes.setdefault(f"{name} {policy.name}", []).append(
                    refusal_or_result(work, sharded)
                )
    return outcomes


def refusal_or_result(work: Callable[..., Any], *arguments: Any) -> Any:
    try:
        return work(*arguments)
    except tfdp.BadInput as error:
        return str(error)


@case
def source_of_another_length() -> Any:
    """The second worker lacks an example."""
    features, labels = numbers(9 - WORKER)
    return refusal_or_result(fit, classifier(), tfdp.from_arrays(features, labels))


SMALL = [((), "float32"), ((), "int64"), ((7, 5), "float64"), ((98_304,), "float32")]
LARGE = [((98_305,), "float32"), ((3, 40_000), "float32")]  # more than 3/2 of 256 KiB


@case
def sums() -> Any:
    """All-reduces of arrays that each worker draws for itself, compared with NumPy's sums."""

    def drawn(worker: int) -> list[np.ndarray]:
        rng = np.random.default_rng(worker)
        return [(1000 * rng.standard_normal(shape)).astype(dtype) for shape, dtype in SMALL + LARGE]

    @tf.function
    def add_up(arrays: list[tf.Tensor]) -> Any:
        def on_replica(*arrays: tf.Tensor) -> list[tf.Tensor]:
            return [all_reduce_sum(tf.identity(each)) for each in arrays]

        return strategy.run(on_replica, args=arrays)

    for _ in range(3):
        totals = [each.numpy() for each in add_up(drawn(WORKER))]
    workers = range(LAST_WORKER + 1)
    expected = [sum(arrays[1:], arrays[0]) for arrays in zip(*map(drawn, workers), strict=True)]
    graph = add_up.get_concrete_function(drawn(WORKER)).graph.as_graph_def()
    nodes = [*graph.node, *(node for each in graph.library.function for node in each.node_def)]
    pairs = list(zip(totals, expected, strict=True))
    return {
        "bits": hashlib.sha256(b"".join(each.tobytes() for each in totals)).hexdigest(),
        "kinds": [[one.dtype == other.dtype, one.shape == other.shape] for one, other in pairs],
        "in_the_workers_order": [np.array_equal(*pair) for pair in pairs],
        "near": [np.allclose(*pair, rtol=1e-5, atol=1e-3) for pair in pairs],
        "gathers": sum(node.op == "CollectiveGatherV2" for node in nodes),
    }


@case
def writers() -> Any:
    """Callbacks that write: the files that each worker has in its own folder afterwards."""
    written = folder / "written"
    written.mkdir()
    callbacks = [
        keras.callbacks.ModelCheckpoint(
            str(written / "best.keras"), save_best_only=True, monitor="loss"
        ),
        keras.callbacks.CSVLogger(str(written / "log.csv")),
        keras.callbacks.TensorBoard(str(written / "curves")),
    ]
    fitted = fit(classifier(), *numbers(), batch_size=7, epochs=2, callbacks=callbacks)
    files = sorted(path.name for path in written.iterdir())
    csv = (written / "log.csv").read_text() if "log.csv" in files else None
    return {"files": files, "csv": csv, "fitted": fitted}


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
    """Each worker normalizes by its own share; its moving averages are those of all workers."""
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
    return refusal_or_result(fit, model, *numbers())


@case
def fault_of_worker_1() -> Any:
    """The last case of a group: it ends all of its processes."""

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
