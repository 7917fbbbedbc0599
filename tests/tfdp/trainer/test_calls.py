"""How ``tfdp.fit``, ``evaluate`` and ``predict`` are called: as the methods of ``keras.Model``."""

from __future__ import annotations

import copy
import inspect
import itertools
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfdp
from tests.tfdp.conftest import Strategies
from tfdp.trainer import connecting

ROWS = np.random.default_rng(2).normal(size=(22, 3)).astype(np.float32)
NUMBERS = 2 * ROWS[:, :1] - 1
TOLERANCE = {"rtol": 2e-5, "atol": 1e-6}

Call = Callable[..., Any]


def compiled(metrics: Any = ("mae",), **options: Any) -> keras.Model:
    keras.utils.set_random_seed(4)
    dense = keras.layers.Dense(4, activation="tanh")
    model = keras.Sequential([keras.layers.Input((3,)), dense, keras.layers.Dense(1)])
    model.compile("sgd", "mse", metrics=list(metrics), **options)
    return model


@pytest.mark.parametrize("name", ["fit", "evaluate", "predict"])
def test_signatures_begin_as_those_of_keras(name: str) -> None:
    def parameters(function: Call) -> list[inspect.Parameter]:
        found = list(inspect.signature(function).parameters.values())[1:]
        return [each for each in found if each.kind is each.POSITIONAL_OR_KEYWORD]

    ours, theirs = parameters(getattr(tfdp, name)), parameters(getattr(keras.Model, name))
    assert [each.name for each in ours] == [each.name for each in theirs]
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.default == other.default or mine.name == "return_dict"


def by_keras(name: str, model: keras.Model) -> Call:
    return getattr(model, name)  # type: ignore[no-any-return]


def by_tfdp(name: str, model: keras.Model) -> Call:
    def call(*args: Any, **options: Any) -> Any:
        return getattr(tfdp, name)(model, *args, **options)

    return call


def batched(size: int = 8) -> tf.data.Dataset:
    return tf.data.Dataset.from_tensor_slices((ROWS, NUMBERS)).batch(size)


WEIGHTS = np.linspace(0, 2, len(ROWS))
FITS: dict[str, tuple[list[Any], dict[str, Any]]] = {
    "positions": ([ROWS, NUMBERS, 8, 3, 0, []], {}),
    "split": ([ROWS, NUMBERS], {"validation_split": 0.3, "epochs": 2}),
    "split with weights": (
        [ROWS, NUMBERS],
        {"validation_split": 0.3, "sample_weight": WEIGHTS},
    ),
    "split beside validation_data": (
        [ROWS, NUMBERS],
        {"validation_split": 0.3, "validation_data": (ROWS[:4], NUMBERS[:4])},
    ),
    "list to validate on": ([ROWS, NUMBERS], {"validation_data": [ROWS[:9], NUMBERS[:9]]}),
    "weights to validate with": (
        [ROWS, NUMBERS],
        {"validation_data": [ROWS[:9], NUMBERS[:9], WEIGHTS[:9]]},
    ),
    "validation_steps": (
        [ROWS, NUMBERS, 5],
        {"validation_data": (ROWS, NUMBERS), "validation_steps": 2, "validation_batch_size": 3},
    ),
    "validation_freq": (
        [ROWS, NUMBERS],
        {"validation_data": (ROWS, NUMBERS), "validation_freq": [1, 3], "epochs": 4},
    ),
    "dataset and batch_size": ([batched()], {"batch_size": 3}),
    "a callback": ([ROWS, NUMBERS], {"callbacks": keras.callbacks.TerminateOnNaN()}),
}


@pytest.mark.parametrize("name", FITS)
def test_fit_takes_what_keras_takes(name: str) -> None:
    positional, named = FITS[name]
    histories = []
    for how in (by_keras, by_tfdp):
        model = compiled()
        options = {} if name == "positions" else {"verbose": 0}
        fitted = how("fit", model)(*positional, shuffle=False, **named, **options)
        histories.append(fitted.history)
    theirs, ours = histories
    assert ours.keys() == theirs.keys()
    for key, values in theirs.items():
        np.testing.assert_allclose(ours[key], values, **TOLERANCE, err_msg=key)


def test_fit_takes_a_list_of_keras() -> None:
    model, notes = compiled(), Notes()
    callbacks = keras.callbacks.CallbackList([notes, [keras.callbacks.TerminateOnNaN()]])
    tfdp.fit(model, ROWS, NUMBERS, verbose=0, callbacks=callbacks, validation_split=0.2)
    assert notes.calls[0] == "test"


@pytest.mark.parametrize("data", [tfdp.from_arrays(ROWS, NUMBERS), batched()])
def test_only_arrays_are_split(data: Any) -> None:
    with pytest.raises(tfdp.BadInput, match="divides arrays, and the data is"):
        tfdp.fit(compiled(), data, validation_split=0.2)


def test_both_parts_of_a_split_need_an_example() -> None:
    with pytest.raises(tfdp.BadInput, match="of 22 examples, 0 would be left"):
        tfdp.fit(compiled(), ROWS, NUMBERS, validation_split=0.99)


CALLS: dict[str, Callable[[Callable[[str], Call]], Any]] = {
    "evaluate, positions": lambda k: k("evaluate")(ROWS, NUMBERS, 8, 0, WEIGHTS, 2),
    "evaluate, a dict": lambda k: k("evaluate")(ROWS, NUMBERS, verbose=0, return_dict=True),
    "evaluate, a list": lambda k: k("evaluate")(ROWS, NUMBERS, verbose=0, return_dict=False),
    "evaluate, unpacked": lambda k: [each / 2 for each in k("evaluate")(ROWS, NUMBERS, verbose=0)],
    "evaluate, by place": lambda k: k("evaluate")(ROWS, NUMBERS, verbose=0)[1],
    "evaluate, a dataset": lambda k: list(k("evaluate")(batched(), steps=2, verbose=0)),
    "evaluate, more steps": lambda k: list(k("evaluate")(ROWS, NUMBERS, steps=9, verbose=0)),
    "predict, positions": lambda k: k("predict")(ROWS, 8, 0, 2),
    "predict, a dataset": lambda k: k("predict")(batched(), verbose=0),
}


@pytest.mark.parametrize("name", CALLS)
def test_evaluate_and_predict_take_what_keras_takes(name: str) -> None:
    theirs, ours = (
        CALLS[name](lambda method, how=how: how(method, compiled())) for how in (by_keras, by_tfdp)
    )
    if isinstance(theirs, dict):
        assert type(ours) is dict
        assert ours == pytest.approx(theirs, rel=1e-5)
    else:
        np.testing.assert_allclose(ours, theirs, **TOLERANCE)


def test_scores_are_a_dict_and_keras_list() -> None:
    model = compiled()
    scores = tfdp.evaluate(model, ROWS, NUMBERS, verbose=0)
    loss, error = scores
    assert {"loss": loss, "mae": error} == scores == dict(scores) == {**scores}
    assert [loss, error] == list(scores) == scores.as_keras() == [scores["loss"], scores["mae"]]
    assert (scores[0], scores[-1], scores[:1]) == (loss, error, [loss])
    assert json.loads(json.dumps(scores)) == scores
    assert pickle.loads(pickle.dumps(scores)) == copy.deepcopy(scores) == scores
    assert "mae" in scores
    assert "{loss}".format(**scores) == str(loss)
    np.testing.assert_array_equal(np.asarray(scores), [loss, error])
    with pytest.raises(TypeError, match=r"2 scores \(loss, mae\) and not one"):
        float(scores)
    with pytest.raises(KeyError, match=r"scores\.items\(\) for their names"):
        _ = [scores[name] for name in scores]


def test_a_single_score_is_a_number() -> None:
    model = compiled(metrics=[])
    score = tfdp.evaluate(model, ROWS, NUMBERS, verbose=0)
    number = model.evaluate(ROWS, NUMBERS, verbose=0)
    assert (score["loss"], score[0], float(score)) == (pytest.approx(number),) * 3
    assert f"{score:.3f} {round(score, 2)}" == f"{number:.3f} {round(number, 2)}"
    assert 100 * score - 1 == pytest.approx(100 * number - 1)
    assert 0 < score < number + 1
    assert not np.isnan(score)
    assert tfdp.evaluate(model, ROWS, NUMBERS, verbose=0, return_dict=False) == float(score)


def test_scores_come_in_keras_order() -> None:
    class Own(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.dense = keras.layers.Dense(1)
            self.own = keras.metrics.Mean("a")

        def call(self, rows: Any) -> Any:
            return self.dense(rows)

        def test_step(self, data: Any) -> Any:
            self.own.update_state(self(data[0]))
            return super().test_step(data)

    model = Own()
    model.compile("sgd", "mse", metrics=["mae"], weighted_metrics=["mse"])
    theirs = model.evaluate(ROWS, NUMBERS, verbose=0)
    np.testing.assert_allclose(
        list(tfdp.evaluate(model, ROWS, NUMBERS, verbose=0)), theirs, **TOLERANCE
    )


class Notes(keras.callbacks.Callback):
    """Notes the hooks of evaluation and prediction."""

    def __init__(self, stop_at: int | None = None) -> None:
        super().__init__()
        self.calls: list[Any] = []
        self.stop_at = stop_at

    def on_test_begin(self, logs: Any = None) -> None:
        self.calls.append("test")

    def on_test_batch_begin(self, batch: int, logs: Any = None) -> None:
        self.calls.append(batch)

    def on_test_batch_end(self, batch: int, logs: Any = None) -> None:
        self.calls.append(logs["mae"])
        self.model.stop_evaluating = batch == self.stop_at

    def on_test_end(self, logs: Any = None) -> None:
        self.calls.append(logs["loss"])

    def on_predict_begin(self, logs: Any = None) -> None:
        self.calls.append("predict")

    def on_predict_batch_begin(self, batch: int, logs: Any = None) -> None:
        self.calls.append(batch)

    def on_predict_batch_end(self, batch: int, logs: Any = None) -> None:
        self.calls.extend(np.ravel(logs["outputs"]).tolist())
        self.model.stop_predicting = batch == self.stop_at


@pytest.mark.parametrize("stop_at", [None, 1])
@pytest.mark.parametrize("data", [(ROWS, NUMBERS), (batched(),)])
def test_hooks_of_evaluation_and_prediction(data: Any, stop_at: int | None) -> None:
    noted = []
    for how in (by_keras, by_tfdp):
        model, notes = compiled(), Notes(stop_at)
        options = {"batch_size": 8} if len(data) == 2 else {}
        how("fit", model)(
            *data, **options, verbose=0, shuffle=False, validation_data=data, callbacks=[notes]
        )
        how("evaluate", model)(*data, **options, verbose=0, callbacks=notes)
        how("predict", model)(*data[:1], **options, verbose=0, callbacks=[notes])
        noted.append(notes.calls)
    theirs, ours = noted
    assert len(ours) == len(theirs)
    for mine, other in zip(ours, theirs, strict=True):
        assert (
            mine == other if isinstance(other, (str, int)) else mine == pytest.approx(other, 1e-4)
        )


@pytest.mark.parametrize("verbose", [0, 1, 2])
def test_verbose_prints_as_keras(verbose: int, capsys: pytest.CaptureFixture[str]) -> None:
    model, printed = compiled(), []
    for how in (by_keras, by_tfdp):
        how("evaluate", model)(ROWS, NUMBERS, verbose=verbose)
        how("predict", model)(ROWS, verbose=verbose)
        printed.append(capsys.readouterr().out)
    theirs, ours = printed
    assert ("1/1" in ours) == ("1/1" in theirs) == (verbose > 0)
    assert ("loss: " in ours) == ("loss: " in theirs) == (verbose > 0)


def test_steps_are_python_where_run_eagerly_is_set() -> None:
    class Looks(keras.Sequential):
        def train_step(self, data: Any) -> Any:
            seen.append(float(tf.reduce_sum(data[0]).numpy()))
            return super().train_step(data)

        def test_step(self, data: Any) -> Any:
            seen.append(float(tf.reduce_mean(data[0]).numpy()))
            return super().test_step(data)

    noted = []
    for how in (by_keras, by_tfdp):
        seen: list[float] = []
        keras.utils.set_random_seed(1)
        model = Looks([keras.layers.Input((3,)), keras.layers.Dense(1)])
        model.compile("sgd", "mse", run_eagerly=True)
        options = {"verbose": 0, "shuffle": False, "validation_split": 0.2}
        fitted = how("fit", model)(ROWS, NUMBERS, 6, 2, **options)
        # A step of the model's own is run once before, to make its variables.
        looked = [value for value, _ in itertools.groupby(seen)][-8:]
        noted.append([*looked, *fitted.history["loss"], *fitted.history["val_loss"]])
    np.testing.assert_allclose(noted[1], noted[0], **TOLERANCE)


@pytest.mark.parametrize("steps", [1, 3])
def test_steps_per_execution_decides_which_batches_callbacks_see(steps: int) -> None:
    noted = []
    for how in (by_keras, by_tfdp):
        model, notes = compiled(steps_per_execution=steps), Notes()
        options = {"verbose": 0, "validation_data": (ROWS, NUMBERS), "callbacks": [notes]}
        how("fit", model)(ROWS, NUMBERS, 3, **options)
        noted.append([each for each in notes.calls if isinstance(each, int)])
    assert noted[0] == noted[1] == list(range(0, 8, steps))


def test_what_compile_asks_for_in_vain_is_reported_once(
    strategies: Strategies, capsys: pytest.CaptureFixture[str]
) -> None:
    with strategies(2).scope():
        model = compiled(run_eagerly=True)
    for _ in range(2):
        tfdp.evaluate(model, ROWS, NUMBERS, verbose=0)
    model = compiled()
    tfdp.evaluate(model, ROWS, NUMBERS, verbose=0)
    model.compile("sgd", "mse", jit_compile=True)
    tfdp.evaluate(model, ROWS, NUMBERS, verbose=0)
    errors = capsys.readouterr().err
    assert errors.count("run_eagerly=True is ignored") == 1
    assert errors.count("jit_compile=True is ignored") == 1


class Recompiles(keras.callbacks.Callback):
    """Unfreezes a layer after an epoch, compiles outside of any scope, and looks at the model."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Any] = []

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        if epoch == 1:
            self.model.layers[0].trainable = True
            metrics = [keras.metrics.MeanSquaredError()]
            self.model.compile(keras.optimizers.Adam(0.02), "mae", metrics=metrics)
            self.model.make_train_function()  # without it, Keras's fit fails
        else:
            self.seen += self.model.evaluate(ROWS[:7], NUMBERS[:7], verbose=0)
        self.seen += np.ravel(self.model.predict(ROWS[:1], verbose=0)).tolist()
        self.seen.append(float(self.model.optimizer.learning_rate))
        self.seen.append(int(self.model.optimizer.iterations))


def test_a_callback_may_compile_the_model_anew(strategies: Strategies) -> None:
    results = []
    for how, strategy in ((by_keras, strategies(1)), (by_tfdp, strategies(3))):
        with strategy.scope():
            model = compiled()
            model.layers[0].trainable = False
            model.compile("sgd", "mse", metrics=["mae"])
        recompiles = Recompiles()
        options = {"verbose": 0, "shuffle": False, "validation_data": (ROWS, NUMBERS)}
        fitted = how("fit", model)(ROWS, NUMBERS, 6, 4, callbacks=[recompiles], **options)
        results.append((fitted.history, recompiles.seen, model.get_weights()))
    (theirs, seen, weights), (ours, seen_by_us, weights_of_us) = results
    assert ours.keys() == theirs.keys()
    for name, values in theirs.items():
        np.testing.assert_allclose(ours[name], values, **TOLERANCE, err_msg=name)
    np.testing.assert_allclose(seen_by_us, seen, **TOLERANCE)
    for mine, other in zip(weights_of_us, weights, strict=True):
        np.testing.assert_allclose(mine, other, **TOLERANCE)


def test_trainable_takes_effect_with_the_next_compile(strategies: Strategies) -> None:
    kernels = []
    for how, strategy in ((by_keras, strategies(1)), (by_tfdp, strategies(2))):
        with strategy.scope():
            model = compiled()
        for freeze, compile_anew in ((False, False), (True, False), (False, False), (True, True)):
            model.layers[0].trainable = not freeze
            if compile_anew:
                model.compile("sgd", "mse")
            how("fit", model)(ROWS, NUMBERS, verbose=0, shuffle=False)
            kernels.append(model.layers[0].kernel.numpy())
            assert model.layers[0].trainable is not freeze
    for theirs, ours in zip(kernels[:4], kernels[4:], strict=True):
        np.testing.assert_allclose(ours, theirs, **TOLERANCE)
    assert np.array_equal(*kernels[2:4])
    assert not np.array_equal(*kernels[:2])


def test_what_was_made_outside_of_the_scope_is_moved_into_it(strategies: Strategies) -> None:
    results = []
    for how, strategy in ((by_keras, strategies(1)), (by_tfdp, strategies(3))):
        keras.utils.set_random_seed(4)
        base = keras.Sequential([keras.layers.Input((3,)), keras.layers.Dense(4)])
        with strategy.scope():
            model = keras.Sequential([keras.layers.Input((3,)), base, keras.layers.Dense(1)])
        optimizer = keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam(0.02))
        metrics = [keras.metrics.MeanAbsoluteError(), "mse"]
        model.compile(optimizer, "mse", metrics=metrics, weighted_metrics=["mae"])
        options = {"verbose": 0, "shuffle": False}
        results.append(
            (
                how("fit", model)(ROWS, NUMBERS, 6, 3, **options, sample_weight=WEIGHTS).history,
                how("evaluate", model)(ROWS, NUMBERS, verbose=0, return_dict=True),
                int(optimizer.iterations),
            )
        )
    (theirs, scores, iterations), (ours, scores_of_us, iterations_of_us) = results
    for name, values in theirs.items():
        np.testing.assert_allclose(ours[name], values, **TOLERANCE, err_msg=name)
    assert scores_of_us == pytest.approx(scores, rel=1e-5)
    assert iterations_of_us == iterations


@pytest.mark.parametrize("shares", ["replicas", "micro-batches"])
def test_a_fixed_batch_size_is_for_one_share(shares: str, strategies: Strategies) -> None:
    options = {"accumulate_steps": 2} if shares == "micro-batches" else {}
    with strategies(1 if options else 2).scope():
        fixed = keras.Sequential([keras.layers.Input((3,), batch_size=7), keras.layers.Dense(1)])
        cells = keras.layers.LSTM(2, stateful=True)
        stateful = keras.Sequential([keras.layers.Input(batch_shape=(6, 2, 3)), cells])
    for model, message in (
        (fixed, "fixed batch size 7, .* of 7 examples 3 or 4: leave the batch size out"),
        (stateful, "is stateful: .* use stateful=False"),
    ):
        model.compile("sgd", "mse")
        rows = np.ones((14, *model.input_shape[1:]))
        with pytest.raises(tfdp.BadInput, match=message):
            tfdp.fit(model, rows, np.ones((14, *model.output_shape[1:])), 7, verbose=0, **options)


def test_a_fixed_batch_size_is_kept_on_one_replica() -> None:
    results = []
    for how in (by_keras, by_tfdp):
        keras.utils.set_random_seed(1)
        cells = keras.layers.LSTM(2, stateful=True)
        model = keras.Sequential([keras.layers.Input(batch_shape=(11, 1, 3)), cells])
        model.compile("sgd", "mse")
        rows, numbers = ROWS[:, np.newaxis], np.tile(NUMBERS, 2)
        fitted = how("fit", model)(rows, numbers, 11, 3, verbose=0, shuffle=False)
        results.append(fitted.history["loss"])
    np.testing.assert_allclose(results[1], results[0], **TOLERANCE)


def test_a_backup_is_gone_on_from(strategies: Strategies, tmp_path: Path) -> None:
    results = []
    for how, strategy in ((by_keras, strategies(1)), (by_tfdp, strategies(2))):
        folder = tmp_path / how.__name__
        for epochs, delete in ((2, False), (5, True)):
            with strategy.scope():
                model = compiled()
                model.compile(keras.optimizers.Adam(0.02), "mse")
            backup = keras.callbacks.BackupAndRestore(str(folder), delete_checkpoint=delete)
            options = {"verbose": 0, "shuffle": False, "callbacks": [backup]}
            fitted = how("fit", model)(ROWS, NUMBERS, 6, epochs, **options)
            assert folder.exists() is not delete
        assert fitted.epoch == [2, 3, 4]
        results.append(fitted.history["loss"])
    np.testing.assert_allclose(results[1], results[0], **TOLERANCE)


def test_connect_is_documented() -> None:
    assert "TF_CONFIG" in (inspect.getdoc(connecting.connect) or "")
