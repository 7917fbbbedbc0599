"""Runs in this process: stopped again and again, beside one that never was; what is refused."""

from __future__ import annotations

import contextlib
import csv
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import safetensors.numpy

from tests.tfdp.conftest import Strategies
from tfdp import files, recipe
from tfdp.errors import BadInput, Replaced, Stopped, TrainingError
from tfdp.publishing import servable
from tfdp.run import run, startup
from tfdp.run.settings import TrainSettings
from tfdp.run.training import train
from tfdp.step import gradients
from tfdp.workers.connecting import Joined

RECIPE = """
import dataclasses
import os
from pathlib import Path

import keras
import numpy as np

import tfdp
from keras.callbacks import *

@dataclasses.dataclass(frozen=True)
class HParams:
    patience: int = 9
    each_batch: bool = True
    width: int = 8
    callbacks: str = ""

def build_model(hparams):
    keras.config.set_dtype_policy("mixed_float16")
    try:
        layers = [
            keras.layers.Input((6,)),
            keras.layers.GaussianNoise(0.1),
            keras.layers.Dense(hparams.width, "relu"),
            keras.layers.BatchNormalization(),
            keras.layers.Dropout(0.3),
            keras.layers.Dense(1, dtype="float32"),
        ]
        model = keras.Sequential(layers)
        model.compile(keras.optimizers.Adam(0.02), "mse", metrics=["mae"])
    finally:
        keras.config.set_dtype_policy("float32")
    return model

def examples(count, seed):
    random = np.random.default_rng(seed)
    return random.normal(size=(count, 6)), random.normal(size=(count, 1))

def train_data(hparams):
    return tfdp.from_arrays(*examples(35, 1))

def eval_data(hparams):
    return tfdp.from_arrays(*examples(11, 2))

class Noting(Callback):
    def __init__(self):
        super().__init__()
        self.seen, self.sum = [], np.zeros(2)

    def on_train_begin(self, logs=None):
        self.seen = [["train"]]

    def on_epoch_begin(self, epoch, logs=None):
        self.seen.append([epoch])

    def on_epoch_end(self, epoch, logs=None):
        self.seen[-1].append("end")
        self.sum += logs["val_loss"]

    def on_train_batch_begin(self, batch, logs=None):
        if hasattr(self.model.optimizer.learning_rate, "assign"):
            self.model.optimizer.learning_rate.assign(self.model.optimizer.learning_rate * 0.99)

    def on_train_batch_end(self, batch, logs=None):
        self.seen[-1].append(batch)
        self.sum += logs["loss"]

    def get_state(self):
        return {"seen": self.seen, "sum": self.sum}

    def set_state(self, state):
        self.seen, self.sum = state["seen"], state["sum"]

def callbacks(hparams):
    if hparams.callbacks:
        return eval(hparams.callbacks)
    folder = Path(os.environ["WRITTEN"])
    return [
        LearningRateScheduler(lambda epoch, rate: rate * 0.9),
        ReduceLROnPlateau("val_loss", factor=0.5, patience=1, cooldown=1),
        *([Noting()] if hparams.each_batch else []),
        CSVLogger(folder / "log.csv"),
        ModelCheckpoint(folder / "best.keras", save_best_only=True),
        EarlyStopping("val_loss", patience=hparams.patience, restore_best_weights=True),
    ]
"""
LINE = """
import keras, numpy as np, tfdp

def build_model(hparams):
    layers = [keras.layers.Input((3,)), keras.layers.Dense(8, "tanh"), keras.layers.Dense(1)]
    model = keras.Sequential(layers)
    several = keras.metrics.F1Score(average=None, threshold=0.5)  # a value for each class
    model.compile(keras.optimizers.Adam(0.01, global_clipnorm=0.1), "mse", metrics=[several])
    return model

def train_data(hparams):
    rows = np.random.default_rng(1).normal(size=(50, 3))
    return tfdp.from_arrays(rows, rows[:, :1])

def eval_data(hparams):
    return train_data(hparams)
"""
RATES = """
import dataclasses
import keras, numpy as np, tfdp

@dataclasses.dataclass(frozen=True)
class HParams:
    rate: float = 0.01
    rate_from_step_4: float = 0.0
    is_schedule: bool = False
    is_scaled: bool = False

class Both(keras.Model):
    def __init__(self, rates):
        super().__init__()
        self.nets = [keras.layers.Dense(2), keras.layers.Dense(3)]
        self.more = {"second": [keras.optimizers.Adam(rates(2))]}

    def build(self, shape):
        for net in self.nets:
            net.build((None, 3))
        self.more["second"][0].build(self.nets[1].trainable_variables)

    def call(self, inputs):
        return self.nets[1](inputs)

    def compute_loss(self, x, y, y_pred, sample_weight=None, training=True):
        return super().compute_loss(x, y, y_pred, sample_weight) + super().compute_loss(
            x, y[:, :2], self.nets[0](x), sample_weight
        )

    def train_step(self, data):
        import tensorflow as tf
        x, y = data
        with tf.GradientTape(persistent=True) as tape:
            loss = self.compute_loss(x, y, self(x))
        for net, optimizer in zip(self.nets, [self.optimizer, self.more["second"][0]]):
            weights = net.trainable_variables
            scaled = tape.gradient(loss, weights)
            optimizer.apply(scaled, weights)
        return {"loss": loss}

class Sets(keras.callbacks.Callback):
    def __init__(self, rate):
        super().__init__()
        self.rate = rate

    def on_train_batch_begin(self, batch, logs=None):
        if int(self.model.optimizer.iterations) == 4:
            self.model.optimizer.learning_rate = self.rate
            self.model.more["second"][0].learning_rate = 2 * self.rate

def build_model(hparams):
    def rates(factor):
        rate = factor * hparams.rate
        return keras.optimizers.schedules.ExponentialDecay(rate, 1, 1.0) if (
            hparams.is_schedule) else rate
    model = Both(rates)
    first = keras.optimizers.Adam(rates(1))
    if hparams.is_scaled:
        first = keras.optimizers.LossScaleOptimizer(first, initial_scale=1.0)
    model.compile(first, "mse")
    model.build((None, 3))
    return model

def callbacks(hparams):
    return [Sets(hparams.rate_from_step_4)] if hparams.rate_from_step_4 else []

def train_data(hparams):
    rows = np.random.default_rng(1).normal(size=(50, 3))
    return tfdp.from_arrays(rows, rows)
"""
STEPS = 19  # of 5 in an epoch


PAIR = """
import keras
import numpy as np
import tensorflow as tf

import tfdp

class Pair(keras.Model):
    '''Two networks with an optimizer each in a dict, noise of TensorFlow, and no call.'''

    def __init__(self):
        super().__init__()
        self.parts = {
            name: keras.Sequential([keras.layers.Dense(4, "tanh"), keras.layers.Dense(out)])
            for name, out in (("maker", 6), ("judge", 1))
        }
        self.optimizers = {name: keras.optimizers.Adam(0.02) for name in self.parts}
        self.judged = keras.metrics.Mean(name="judged")

    def train_step(self, real):
        found = {}
        for name, sign in (("judge", 1.0), ("maker", -1.0)):
            with tf.GradientTape() as tape:
                made = self.parts["maker"](tf.random.normal((tf.shape(real)[0], 3)))
                judge = self.parts["judge"]
                found[name] = sign * tf.reduce_mean(judge(made) ** 2 - tf.tanh(judge(real)))
            weights = self.parts[name].trainable_weights
            self.optimizers[name].apply(tape.gradient(found[name], weights), weights)
        self.judged.update_state(found["judge"])
        return {"tracked": self.judged.result(), "of_maker": found["maker"]}

def build_model(hparams):
    model = Pair()
    model.compile()
    return model

def train_data(hparams):
    return tfdp.from_arrays(np.random.default_rng(1).normal(size=(35, 6)))
"""


class FakeSignals:
    """Signals, of which one is there when the run has looked ``times`` times."""

    def __init__(self, times: int | None = None) -> None:
        self._left = times

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        yield

    @property
    def received(self) -> int | None:
        if self._left is None:
            return None
        self._left -= 1
        return 15 if self._left < 0 else None


class Runs:
    """Starts runs of a recipe in folders of one test."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self._monkeypatch = monkeypatch
        self._recipe = folder / "resumed_recipe.py"
        self.set_recipe(RECIPE)

    def set_recipe(self, source: str) -> None:
        self._recipe.write_text(source)

    def start(
        self, name: str, *hparam: str, signals: FakeSignals | None = None, **flags: Any
    ) -> None:
        """Starts a run, or goes on with it."""
        (self.folder / name / "run").mkdir(parents=True, exist_ok=True)
        self._monkeypatch.setenv("WRITTEN", str(self.folder / name))
        options = {
            "steps": STEPS,
            "global_batch_size": 7,
            "checkpoint_every_steps": 3,
            "keep_checkpoints": 100,
            "export_dir": Path("none"),
            "tensorboard": False,
        }
        settings = TrainSettings(
            recipe=str(self._recipe), workdir=self.folder / name / "run", **(options | flags)
        )
        train(settings, recipe.load(settings.recipe, hparam), signals or FakeSignals())  # type: ignore[arg-type]

    def finish(self, name: str, times: list[int], *hparam: str, **flags: Any) -> list[int]:
        """Starts a run until it ends by itself, and gives the steps that it was stopped at."""
        stops = []
        for count in times:
            try:
                self.start(name, *hparam, signals=FakeSignals(count), **flags)
            except Stopped as stopped:
                stops.append(stopped.step)
        self.start(name, *hparam, **flags)
        return stops

    def summary(self, name: str) -> dict[str, Any]:
        return json.loads((self.folder / name / "run" / "summary.json").read_text())

    def states(self, name: str) -> dict[int, dict[str, np.ndarray]]:
        """Arrays by place, for Keras numbers what it names over all models of a process."""
        return {
            int(path.parent.name): {
                "/".join(name.split("/")[:2]): array
                for name, array in safetensors.numpy.load_file(path).items()
            }
            for path in (self.folder / name / "run").glob("checkpoints/[0-9]*/state.safetensors")
        }

    def assert_alike(self, name: str, other: str) -> None:
        """Whether two runs left the same bits."""
        summary, expected = self.summary(name), self.summary(other)
        for what in ("weights_sha256", "steps", "metrics", "eval_metrics", "history", "best"):
            assert summary[what] == expected[what], what
        states = self.states(name)
        for step, state in self.states(other).items():
            for array_name, array in state.items():
                bits = states[step][array_name].tobytes()
                assert bits == array.tobytes(), (step, array_name, bits[:999])
        for file in ("log.csv", "best.keras"):
            ours, theirs = (self.folder / each / file for each in (name, other))
            assert ours.exists() == theirs.exists()
            if file == "log.csv" and ours.exists():
                assert ours.read_bytes() == theirs.read_bytes()
            elif ours.exists():
                models = [keras.models.load_model(path).get_weights() for path in (ours, theirs)]
                for mine, expected_weights in zip(*models, strict=True):
                    np.testing.assert_array_equal(mine, expected_weights)


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, strategies: Strategies) -> Iterator[Runs]:
    monkeypatch.setattr(startup, "join", lambda *_: Joined(strategies(2)))
    yield Runs(tmp_path, monkeypatch)


def test_stops_anywhere_and_more_steps_leave_no_trace(runs: Runs) -> None:
    """In the middle of an epoch, at its end, and at an end in the middle of an epoch."""
    runs.start("undisturbed")
    runs.start("disturbed", steps=3)
    stops = runs.finish("disturbed", [1, 6])
    assert {bool(step % 5) for step in stops} == {True, False}, stops
    runs.assert_alike("disturbed", "undisturbed")

    history = runs.summary("undisturbed")["history"]
    assert history["epoch"] == [0, 1, 2, 3]
    assert history["learning_rate"][0] == pytest.approx(0.02 * 0.9 * 0.99**5, rel=1e-5)
    with (runs.folder / "disturbed" / "log.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["epoch"]) for row in rows] == history["epoch"]
    assert [float(row["val_loss"]) for row in rows] == history["val_loss"]


def test_a_step_of_ones_own_with_noise_and_two_optimizers_resumes(runs: Runs, capfd: Any) -> None:
    runs.set_recipe(PAIR)
    runs.start("undisturbed")
    runs.start("disturbed", steps=3)
    assert runs.finish("disturbed", [4])
    runs.assert_alike("disturbed", "undisturbed")
    summary = runs.summary("undisturbed")
    assert {*summary["history"]} == {"epoch", "tracked", "of_maker"}
    assert len(set(summary["history"]["of_maker"])) == 4
    assert "neither the mean" not in capfd.readouterr().err


def test_a_run_keeps_the_pack_size_that_it_began_with(
    runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    def kept(step: int) -> int:
        manifest = runs.folder / "one" / "run" / "checkpoints" / str(step) / "manifest.json"
        return json.loads(manifest.read_text())["about"]["settings"]["bytes_per_pack"]

    plain = "callbacks=[]"
    runs.start("one", plain, steps=1)
    assert kept(1) == 13033  # the root of 81 weights of 4 bytes, 2 replicas and 1 << 18
    monkeypatch.setattr(gradients, "BYTES_PER_HOP", 1)  # another version may choose another
    runs.start("one", plain, steps=2)
    assert kept(2) == kept(1)
    with pytest.raises(BadInput, match="bytes_per_pack was 13033 and is 40"):
        runs.start("one", plain, steps=3, bytes_per_pack=40)
    with pytest.raises(BadInput, match="gradient_dtype was float32 and is bfloat16"):
        runs.start("one", plain, steps=3, gradient_dtype="bfloat16")


def test_a_profile_is_written_and_summed_up(runs: Runs, capfd: Any) -> None:
    runs.start("one", "callbacks=[]", steps=12, profile=True)
    folder = runs.folder / "one" / "run" / "tensorboard"
    assert list(folder.rglob("*.xplane.pb"))
    message = capfd.readouterr().err
    limited = re.findall(r"this run is limited by [\w-]+ \(input ", message)
    assert len(limited) == 1


@pytest.fixture
def alone(runs: Runs, monkeypatch: pytest.MonkeyPatch, strategies: Strategies) -> Runs:
    """The same on one replica, for what has nothing to do with their number."""
    monkeypatch.setattr(startup, "join", lambda *_: Joined(strategies(1)))
    return runs


def test_a_run_that_callbacks_stop_is_finished(alone: Runs, capfd: Any) -> None:
    quick = ("each_batch=false", "patience=1")
    alone.start("undisturbed", *quick, steps=1000)
    summary = alone.summary("undisturbed")
    assert summary["steps"] < 100 and summary["steps"] % 5 == 0
    best = int(np.argmin(summary["history"]["val_loss"]))
    assert best < len(summary["history"]["epoch"]) - 1, "the last epoch was not the best"
    assert summary["eval_metrics"]["loss"] == summary["history"]["val_loss"][best], (
        "the best came back"
    )

    (alone.folder / "undisturbed" / "run" / "summary.json").unlink()
    alone.start("undisturbed", *quick, steps=1000)  # as if killed before it was written
    again = alone.summary("undisturbed")
    for name in ("weights_sha256", "steps", "history", "eval_metrics"):
        assert again[name] == summary[name], name
    capfd.readouterr()
    alone.start("undisturbed", *quick, steps=2000)
    assert "is finished at step" in capfd.readouterr().err

    assert alone.finish("disturbed", [2, 1], *quick, steps=1000)
    alone.assert_alike("disturbed", "undisturbed")


def test_the_best_by_a_metric_stays(alone: Runs) -> None:
    plain = ("callbacks=[]",)
    flags = {"eval_every_steps": 7, "keep_checkpoints": 1, "checkpoint_every_steps": 100}
    alone.start("one", *plain, keep_best="mae:max", **flags)
    best = alone.summary("one")["best"]
    folder = alone.folder / "one" / "run" / "checkpoints"
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        {"19", str(best["step"]), "best"}
    )
    assert (folder / "best").readlink() == Path(str(best["step"]))

    # What was best is what a run to that step gives when it is evaluated.
    scores = {}
    for step in (7, 14, 19):
        alone.start("other", *plain, steps=step)
        scores[step] = alone.summary("other")["eval_metrics"]["mae"]
    assert best == {"by": "mae:max", "step": max(scores, key=scores.__getitem__)} | {
        "value": max(scores.values())
    }
    assert best["step"] != 19
    with pytest.raises(BadInput, match=r"--keep_best is nope:min: evaluations .* give loss, mae"):
        alone.start("two", *plain, keep_best="nope:min", **flags)


def test_checkpoints_of_another_run_are_refused_unless_adopted(alone: Runs) -> None:
    plain = "callbacks=[]"
    alone.start("one", plain, steps=4)
    first = alone.states("one")[4]
    with pytest.raises(BadInput, match="global_batch_size was 7 and is 8"):
        alone.start("one", plain, global_batch_size=8)
    with pytest.raises(BadInput, match=r"recipe_sha256 was .* and is .*--adopt_checkpoints"):
        alone.start("one", plain, "width=9")
    with pytest.raises(
        BadInput,
        match=r"model variable 0 was \S*/kernel float32\[6, 8\], is .*\[6, 9\].* more",
    ):
        alone.start("one", plain, "width=9", adopt_checkpoints=True)
    for name, array in alone.states("one")[4].items():
        np.testing.assert_array_equal(array, first[name])

    alone.start("one", plain, seed=3, steps=5, adopt_checkpoints=True)
    assert alone.summary("one")["seed"] == 3
    with pytest.raises(BadInput, match="seed was 3 and is 0"):
        alone.start("one", plain, steps=6)


@pytest.mark.parametrize("is_scaled", ["false", "true"])
def test_an_adopted_checkpoint_gets_the_learning_rates_of_the_recipe(
    is_scaled: str, alone: Runs
) -> None:
    """As if a callback had set them in a run that goes on."""
    alone.set_recipe(RATES)
    scaled = f"is_scaled={is_scaled}"
    alone.start("undisturbed", scaled, "rate_from_step_4=0.5")
    alone.start("adopted", scaled, steps=4)
    with pytest.raises(BadInput, match="recipe_sha256"):
        alone.start("adopted", scaled, "rate=0.5")
    alone.start("adopted", scaled, "rate=0.5", steps=6, adopt_checkpoints=True)
    alone.start("adopted", scaled, "rate=0.5", adopt_checkpoints=True)  # its own: resumed
    alone.start("schedule", scaled, steps=4)
    alone.start("schedule", scaled, "rate=0.5", "is_schedule=true", adopt_checkpoints=True)
    adopted, expected = (alone.states(name)[STEPS] for name in ("adopted", "undisturbed"))
    for name, array in expected.items():
        if name.startswith(("model/", "optimizer/")):
            np.testing.assert_array_equal(adopted[name], array)
    summaries = [alone.summary(name) for name in ("undisturbed", "adopted", "schedule")]
    assert len({summary["weights_sha256"] for summary in summaries}) == 1


def test_a_learning_rate_that_a_callback_set_is_resumed(alone: Runs) -> None:
    alone.set_recipe(RATES)
    alone.start("undisturbed", "rate_from_step_4=0.5")
    stops = alone.finish("disturbed", [3, 2], "rate_from_step_4=0.5")
    assert stops
    alone.assert_alike("disturbed", "undisturbed")


def test_accumulation_changes_rounding_alone_and_mixed_precision_the_numbers(alone: Runs) -> None:
    alone.set_recipe(LINE)
    flags = {
        "plain": {},
        "accumulated": {"accumulate_steps": 3},
        "mixed": {"mixed_precision": "bfloat16"},
    }
    for name, own in flags.items():
        alone.start(name, steps=9, global_batch_size=17, **own)
    plain, accumulated, mixed = (alone.states(name)[9] for name in flags)
    for name, array in plain.items():
        if name.startswith(("model/", "optimizer/")):
            np.testing.assert_allclose(accumulated[name], array, rtol=1e-4, atol=1e-6)
    weights = [name for name in plain if name.startswith("model/")]
    for name in weights:
        assert mixed[name].dtype == np.float32
        np.testing.assert_allclose(mixed[name], plain[name], atol=0.02)
    for other in (accumulated, mixed):
        assert any((other[name] != plain[name]).any() for name in weights), "the flag did nothing"


@pytest.mark.parametrize(
    ("right", "wrong", "message"),
    [
        ("return model", "return 'model'", r"builtins\.str.* keras\.Model"),
        ("model.compile(", "(lambda *_, **__: None)(", r"not compiled.*model\.compile"),
        ("return tfdp", "return [1, 2]; tfdp", r"train_data returned a list.*tfdp\.Source"),
    ],
)
def test_recipes_that_give_something_else_are_refused(
    right: str, wrong: str, message: str, alone: Runs
) -> None:
    alone.set_recipe(LINE.replace(right, wrong))
    with pytest.raises(BadInput, match=message):
        alone.start("one")


@pytest.mark.parametrize(
    ("made", "message"),
    [
        ("3", "callbacks returned a int, and has to return a list"),
        ("[3]", "a list with a int in it"),
        ("[EarlyStopping('val_nope')]", "monitors val_nope.* gives val_loss, val_mae"),
        ("[SwapEMAWeights(swap_on_epoch=True)]", "SwapEMAWeights.* can't go on"),
        ("[BackupAndRestore('x')]", "BackupAndRestore has nothing to do here"),
        ("[type('Half', (Callback,), {'get_state': 1})()]", "Half has one of get_state and set_"),
    ],
)
def test_callbacks_that_can_not_work_are_refused(made: str, message: str, alone: Runs) -> None:
    with pytest.raises(BadInput, match=f"recipe .*{message}"):
        alone.start("one", f"callbacks={made}")


def test_a_callback_that_compiles_the_model_anew_is_refused(alone: Runs) -> None:
    hook = "{'on_epoch_end': lambda self, *of_epoch: self.model.compile('sgd', 'mse')}"
    with pytest.raises(BadInput, match=r"compiled the model during training.* or use tfdp\.fit"):
        alone.start("one", f"callbacks=[type('Compiles', (Callback,), {hook})()]")


def test_a_state_that_can_not_be_saved_is_named(alone: Runs) -> None:
    made = "[type('Odd', (Callback,), {'get_state': lambda self: {1, 2}, 'set_state': print})()]"
    with pytest.raises(TrainingError, match="the state of Odd can't be saved: there is a set in"):
        alone.start("one", f"callbacks={made}", steps=1)


def test_another_owner_of_the_workdir_ends_a_run_that_writes_nothing(alone: Runs) -> None:
    workdir = alone.folder / "one" / "run"

    class TakesWorkdir(FakeSignals):
        @property
        def received(self) -> None:
            if (workdir / "checkpoints" / "3").exists():
                files.Claim(workdir)

    with pytest.raises(Replaced, match=f"another process goes on with the run in {workdir}"):
        alone.start("one", "callbacks=[]", signals=TakesWorkdir(), checkpoint_every_steps=1)
    assert not (workdir / "summary.json").exists()
    assert all(path.name.isdigit() for path in (workdir / "checkpoints").iterdir())
    assert max(alone.states("one")) < STEPS


def test_other_weights_than_required_are_not_published(alone: Runs) -> None:
    flags = {"steps": 2, "export_dir": alone.folder / "models"}
    with pytest.raises(
        TrainingError, match=r"sha256 is \w{64}, and has to be 00 .*The run is saved"
    ):
        alone.start("one", "callbacks=[]", require_weights="00", **flags)
    assert not list((alone.folder / "models").glob("[0-9]*"))


@pytest.mark.parametrize("before", ["publishing", "summing up"])
def test_who_loses_the_workdir_at_the_end_publishes_nothing(
    before: str, alone: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    workdir = alone.folder / "one" / "run"

    def lose(*_: Any) -> None:
        files.Claim(workdir)

    if before == "publishing":
        monkeypatch.setattr(servable, "published", lose)
    else:
        monkeypatch.setattr(run.Run, "_publish", lose)
    with pytest.raises(Replaced):
        alone.start("one", "callbacks=[]", steps=1, export_dir=None)
    assert not (workdir / "summary.json").exists()
    assert list((workdir / "model").iterdir()) == []
