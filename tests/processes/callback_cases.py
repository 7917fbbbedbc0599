"""What users' callbacks and calls do on workers, and in one process by plain Keras.

``python callback_cases.py FOLDER CASE…`` writes the result of each case to
``FOLDER/<worker>/<case>.json``. Without TF_CONFIG, Keras's own methods compute the cases. Models
are float64, so a difference is a fault and not rounding.
"""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

import tfdp
from cluster.spec import from_environment

CLUSTER = from_environment()
WORKER = 0 if CLUSTER is None else CLUSTER.index
ROWS = np.random.default_rng(1).normal(size=(26, 3))
NUMBERS = ROWS[:, :1] * 2 - 1

CASES: dict[str, Callable[[], Any]] = {}
strategy: tf.distribute.Strategy
folder: Path


def case(function: Callable[[], Any]) -> Callable[[], Any]:
    CASES[function.__name__] = function
    return function


def call(method: str, model: keras.Model, *args: Any, **options: Any) -> Any:
    """Calls a method of Keras, or tfdp's function of that name."""
    if CLUSTER is None:
        return getattr(model, method)(*args, **options)
    return getattr(tfdp, method)(model, *args, **options)


def fit(model: keras.Model, *args: Any, **options: Any) -> dict[str, Any]:
    history = call("fit", model, *args, verbose=0, shuffle=False, **options)
    return {
        "history": history.history,
        "epochs": history.epoch,
        "weights": np.concatenate([each.ravel() for each in model.get_weights()]).tolist(),
    }


def regression(
    optimizer: Any = "sgd", frozen: bool = False, weighted: Any = None, **compiling: Any
) -> keras.Model:
    keras.utils.set_random_seed(5)
    with strategy.scope():
        hidden = keras.layers.Dense(4, activation="tanh", trainable=not frozen)
        model = keras.Sequential([keras.layers.Input((3,)), hidden, keras.layers.Dense(1)])
        metrics = {"metrics": ["mae"], "weighted_metrics": weighted}
        model.compile(optimizer, "mse", **metrics, **compiling)
    return model


EXPRESSIONS = """
float(optimizer.learning_rate)
f"{float(optimizer.learning_rate):.5f}"
"%.4f" % optimizer.learning_rate
optimizer.learning_rate.numpy() * 2
float(optimizer.learning_rate * 2)
float(1 - optimizer.learning_rate)
float(optimizer.learning_rate / 2 + optimizer.learning_rate ** 2)
round(float(optimizer.learning_rate), 4)
max(float(optimizer.learning_rate) * 0.5, 1e-6)
float(optimizer.learning_rate.value)
float(ops.convert_to_tensor(optimizer.learning_rate))
ops.convert_to_numpy(optimizer.learning_rate).tolist()
np.float64(optimizer.learning_rate)
int(optimizer.iterations)
"%d" % int(optimizer.iterations)
int(optimizer.iterations) % 2
bool(optimizer.iterations % 2 == 0)
optimizer.iterations.numpy().item()
bool(optimizer.iterations > 3)
float(optimizer.iterations)
np.mean(kernel)
float(ops.norm(kernel))
[float(each) for each in kernel[:, 0]]
bool(ops.any(ops.isnan(kernel)))
kernel.numpy().sum()
(kernel + kernel).numpy().tolist()
float(model.metrics[0].result())
model(ROWS[:1]).numpy().tolist()
model.layers[0].get_weights()[1].tolist()
""".strip().splitlines()


@case
def values_of_variables() -> Any:
    """Expressions with variables, as callbacks print and compute with them."""

    class Prints(keras.callbacks.Callback):
        def __init__(self) -> None:
            super().__init__()
            self.values: list[Any] = []

        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            names = {
                "model": self.model,
                "optimizer": self.model.optimizer,
                "kernel": self.model.layers[0].kernel,
                "ops": keras.ops,
            }
            for expression in EXPRESSIONS:
                value = eval(expression, globals() | names)
                self.values.append(value if isinstance(value, str) else np.asarray(value).tolist())
            self.model.optimizer.learning_rate = float(self.model.optimizer.learning_rate) * 0.9
            self.model.optimizer.learning_rate.assign(self.model.optimizer.learning_rate * 0.9)

    prints = Prints()
    fit(regression(keras.optimizers.Adam(0.0123)), ROWS, NUMBERS, 6, 2, callbacks=prints)
    return prints.values


class Unfreezes(keras.callbacks.Callback):
    """Compiles the model anew, outside of the strategy's scope, in a hook of an epoch."""

    def __init__(self, hook: str, epoch: int) -> None:
        super().__init__()
        self.place = (hook, epoch)

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self.compile("begin", epoch)

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self.compile("end", epoch)

    def compile(self, hook: str, epoch: int) -> None:
        if (hook, epoch) == self.place:
            self.model.layers[0].trainable = True
            self.model.compile(
                keras.optimizers.Adam(0.02), "mae", metrics=[keras.metrics.MeanSquaredError("own")]
            )
            self.model.make_train_function()  # without it, Keras's fit fails
            self.evaluated = self.model.evaluate(ROWS, NUMBERS, verbose=0)


@case
def compiled_in_callbacks() -> Any:
    results = []
    for place in (("begin", 1), ("end", 0), ("end", 2)):
        model = regression(frozen=True)
        options = {"validation_data": [ROWS[:5], NUMBERS[:5]]}
        unfreezes = Unfreezes(*place)
        results.append(fit(model, ROWS, NUMBERS, 6, 3, callbacks=[unfreezes], **options))
        results.append(unfreezes.evaluated)
        results.append(fit(model, ROWS, NUMBERS, 6, 1))
    return results


@case
def compiled_between_fits() -> Any:
    """Outside of the scope, with objects that were made outside, one of them used before."""
    model = regression(frozen=True)
    results = [fit(model, ROWS, NUMBERS, 6, 2)]
    model.layers[0].trainable = True  # has no effect before the next compile
    results.append(fit(model, ROWS, NUMBERS, 6, 1))
    optimizer = keras.optimizers.SGD(0.05, momentum=0.9)
    for loss in ("mse", "mae"):
        model.compile(optimizer, loss, metrics=[keras.metrics.MeanSquaredError(), "mae"])
        results.append(fit(model, ROWS, NUMBERS, 6, 2))
    results.append(call("evaluate", model, ROWS, NUMBERS, verbose=0, return_dict=True))
    return results


@case
def models_in_callbacks() -> Any:
    """The model's own methods, on all workers or on the chief, with fewer rows than workers."""
    found: list[Any] = []

    class Looks(keras.callbacks.Callback):
        def __init__(self, on_chief_only: bool) -> None:
            super().__init__()
            self.on_chief_only = on_chief_only

        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            if self.on_chief_only and WORKER:
                return
            model, rows = self.model, ROWS[: 1 + 4 * epoch]
            hidden = keras.Model(model.inputs, model.layers[0].output)
            numbers = tf.data.Dataset.from_tensor_slices((ROWS, NUMBERS)).batch(8)
            found.extend(
                [
                    model.predict(rows, verbose=0).tolist(),
                    model.predict_on_batch(rows).tolist(),
                    model.evaluate(ROWS[:1], NUMBERS[:1], verbose=0),
                    model.evaluate(numbers, verbose=0, return_dict=True),
                    model.test_on_batch(ROWS, NUMBERS),
                    hidden.predict(ROWS, batch_size=5, verbose=0).tolist(),
                    hidden(rows).numpy().tolist(),
                ]
            )
            with strategy.scope():  # as in scripts that are in the scope as a whole
                found.append(model.predict(rows, verbose=0).tolist())

    model = regression(weighted=[keras.metrics.MeanSquaredError("own")])
    before = [model.evaluate(ROWS, NUMBERS, verbose=0) for _ in range(2 - WORKER)][:1]
    results = []
    for on_chief_only in (False, True):
        looks = Looks(on_chief_only)
        results.append(fit(model, ROWS, NUMBERS, 6, 2, callbacks=looks, validation_split=0.2))
    after = [model.predict(ROWS[:1], verbose=0).tolist(), model.evaluate(ROWS, NUMBERS, verbose=0)]
    return {"found": found, "fits": results, "before": before, "after": after}


@case
def evaluated_within_epochs() -> Any:
    """Keras resets the metrics of training, which go on from those of the evaluation."""

    class Evaluates(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
            if epoch == 1:
                self.model.evaluate(ROWS[:5], NUMBERS[:5], verbose=0)

        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            if batch == 2 and WORKER == 0:
                self.model.evaluate(ROWS, NUMBERS, verbose=0)

    return fit(regression(), ROWS, NUMBERS, 6, 3, callbacks=[Evaluates()])


@case
def hooks() -> Any:
    """Hooks of evaluation and prediction: which are called, with which logs and outputs."""
    calls: list[Any] = []

    class Notes(keras.callbacks.Callback):
        def on_test_begin(self, logs: Any = None) -> None:
            calls.append("test")

        def on_test_batch_begin(self, batch: int, logs: Any = None) -> None:
            calls.append(batch)

        def on_test_batch_end(self, batch: int, logs: Any = None) -> None:
            calls.append({"batch": batch, **logs})
            if len(calls) > 40 and WORKER == 0:
                self.model.stop_evaluating = True

        def on_test_end(self, logs: Any = None) -> None:
            calls.append(logs)

        def on_predict_batch_end(self, batch: int, logs: Any = None) -> None:
            calls.append(np.asarray(logs["outputs"]).tolist())

        def on_predict_end(self, logs: Any = None) -> None:
            calls.append("predicted")

    model = regression(steps_per_execution=1)
    fit(model, ROWS, NUMBERS, 8, 1, callbacks=[Notes()], validation_data=(ROWS, NUMBERS))
    numbers = tf.data.Dataset.from_tensor_slices((ROWS, NUMBERS)).batch(12)
    call("evaluate", model, numbers, verbose=0, callbacks=[Notes()])
    call("predict", model, ROWS, 10, 0, callbacks=Notes())
    call("predict", model, numbers, verbose=0, callbacks=[Notes()], steps=2)
    call("evaluate", model, ROWS, NUMBERS, 4, 0, callbacks=[Notes()])  # stops early
    return calls


@case
def calls() -> Any:
    """Arguments and positions of Keras's signatures."""
    model = regression()
    options = {"validation_split": 0.3, "validation_freq": [1, 3], "validation_steps": 1}
    frozen = [fit(model, ROWS, NUMBERS, 6, 3, validation_batch_size=5, **options)]
    loss, error = call("evaluate", model, ROWS, NUMBERS, 8, 0)
    scores = call("evaluate", model, ROWS, NUMBERS, 8, 0, None, 2)
    weights = np.linspace(0, 2, len(ROWS))
    return [
        *(frozen, loss, error, scores[1]),
        call("evaluate", model, ROWS, NUMBERS, 8, 0, weights, return_dict=True),
        call("evaluate", model, ROWS, NUMBERS, verbose=0, return_dict=False),
        call("predict", model, ROWS, 8, 0, 2).tolist(),
    ]


@case
def backed_up() -> Any:
    """A run that ended after two epochs goes on with the third, on all workers."""
    own = folder if CLUSTER is None else folder.parent / "shared"  # only the chief uses it
    results = []
    for epochs, keep in ((2, False), (4, True)):
        backup = keras.callbacks.BackupAndRestore(str(own / "backup"), delete_checkpoint=keep)
        model = regression(keras.optimizers.Adam(0.02))
        callbacks = [backup] if WORKER == 0 else []
        results.append(fit(model, ROWS, NUMBERS, 6, epochs, callbacks=callbacks))
    return {"results": results, "is_left": (own / "backup").exists()}


@case
def refusals() -> Any:
    """Errors that all workers get at once, and from which they go on."""

    def refused(work: Callable[[], Any]) -> str:
        try:
            work()
        except tfdp.BadInput as error:
            return str(error)
        return "no error"

    class CompilesOnOne(keras.callbacks.Callback):
        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            if tfdp.is_chief():
                self.model.compile("sgd", "mse")

    with strategy.scope():
        fixed = keras.Sequential([keras.layers.Input((3,), batch_size=6), keras.layers.Dense(1)])
        fixed.compile("sgd", "mse")
        inputs = keras.layers.Input(batch_shape=(4, 2, 3))
        stateful = keras.Sequential([inputs, keras.layers.LSTM(2, stateful=True)])
        stateful.compile("sgd", "mse")
        unbuilt = keras.Sequential([keras.layers.Dense(1)])
        unbuilt.compile("sgd", "mse")
    model = regression()
    return {
        "unbuilt": refused(lambda: unbuilt.predict(ROWS)),
        "fit": refused(lambda: model.fit(ROWS, NUMBERS)),
        "train_on_batch": refused(lambda: model.train_on_batch(ROWS, NUMBERS)),
        "compile": refused(lambda: fit(model, ROWS, NUMBERS, 6, 2, callbacks=[CompilesOnOne()])),
        "batch_size": refused(lambda: fit(fixed, ROWS[:24], NUMBERS[:24], 6)),
        "stateful": refused(lambda: fit(stateful, np.ones((4, 2, 3)), np.ones((4, 2)), 4)),
    }


@case
def quiet() -> Any:
    """What Keras warns of and prints on every worker."""
    with strategy.scope():
        keras.Sequential([keras.layers.Dense(1, input_shape=(3,))])
    scheduler = keras.callbacks.LearningRateScheduler(lambda epoch, rate: rate, verbose=1)
    model = regression(jit_compile=True)
    fit(model, ROWS, NUMBERS, 6, 1, callbacks=[scheduler])
    warnings.warn("of the user", stacklevel=1)


def main() -> None:
    global strategy, folder
    folder = Path(sys.argv[1]) / str(WORKER)
    folder.mkdir(parents=True)
    keras.config.set_floatx("float64")
    keras.config.set_dtype_policy("float64")
    strategy = tf.distribute.get_strategy() if CLUSTER is None else tfdp.connect()
    for name in sys.argv[2:]:
        print(f"case {name}", flush=True)
        result = CASES[name]()
        (folder / f"{name}.json").write_text(json.dumps(result))


if __name__ == "__main__":
    main()
