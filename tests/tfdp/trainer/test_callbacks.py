from __future__ import annotations

import csv
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

import tfdp
from tfdp.data import pipeline
from tfdp.data.order import Order
from tfdp.errors import Stopped
from tfdp.step.gradients import GradientAllReduce
from tfdp.trainer.callbacks import StepCallback, check, for_worker, observe_each_batch
from tfdp.trainer.epochs import run_epochs
from tfdp.workers.collectives import workers_of

callbacks = keras.callbacks
random = np.random.default_rng(3)
ROWS = random.normal(size=(30, 4)).astype(np.float32)
NUMBERS = random.normal(size=(30, 1)).astype(np.float32)


@dataclasses.dataclass
class Member:
    is_chief: bool


class Own(callbacks.Callback):
    """Looks at epochs only."""

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None: ...


class OwnBatches(callbacks.Callback):
    """Notes the hooks of batches, and stops after so many batches."""

    def __init__(self, stop_after: int | None = None) -> None:
        super().__init__()
        self.calls: list[Any] = []
        self.stop_after = stop_after

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        self.calls.append(("begin", batch))

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.calls.append(("end", batch, round(logs["loss"], 5)))
        if self.stop_after is not None and len(self.calls) >= 2 * self.stop_after:
            self.model.stop_training = True


class Acting(StepCallback):
    def __init__(self, every_steps: int) -> None:
        self.steps: list[int] = []
        super().__init__(every_steps, self.steps.append)


def test_only_the_chief_runs_what_writes(tmp_path: Path) -> None:
    writing = [
        callbacks.BackupAndRestore(tmp_path / "backup"),
        callbacks.CSVLogger(tmp_path / "log.csv"),
        callbacks.ModelCheckpoint(tmp_path / "best.keras"),
        callbacks.TensorBoard(tmp_path),
        callbacks.ProgbarLogger(),
    ]
    deciding = [callbacks.EarlyStopping(), Own(), Acting(1)]
    assert for_worker([*writing, *deciding], Member(is_chief=True)) == [*writing, *deciding]
    assert for_worker([*writing, *deciding], Member(is_chief=False)) == deciding


def test_backup_and_restore_is_for_scripts(tmp_path: Path) -> None:
    with pytest.raises(tfdp.BadInput, match=r"BackupAndRestore .* python -m tfdp\.train"):
        check([callbacks.BackupAndRestore(tmp_path)], [])
    within_epochs = callbacks.BackupAndRestore(tmp_path, save_freq=3)
    with pytest.raises(tfdp.BadInput, match=r"save_freq=3\) saves within an epoch"):
        tfdp.fit(compiled(), ROWS, NUMBERS, callbacks=within_epochs)


class OwnLogger(callbacks.CSVLogger):
    """A subclass of Keras's that looks at epochs only."""

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None: ...


class OwnStopping(callbacks.EarlyStopping):
    """A subclass of Keras's that looks at batches."""

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None: ...


class OldName(callbacks.Callback):
    def on_batch_end(self, batch: int, logs: Any = None) -> None: ...


@pytest.mark.parametrize(
    ("make", "wants"),
    [
        (Own, False),
        (OwnBatches, True),
        (OldName, True),
        (OwnStopping, True),
        (lambda: OwnLogger("unused.csv"), False),
        (lambda: Acting(3), False),
        (callbacks.EarlyStopping, False),
        (callbacks.TerminateOnNaN, False),
        (lambda: callbacks.ModelCheckpoint("unused.keras"), False),
        (lambda: callbacks.ModelCheckpoint("unused.keras", save_freq=3), True),
        (lambda: callbacks.TensorBoard("unused"), False),
        (lambda: callbacks.TensorBoard("unused", update_freq=3), True),
        (lambda: callbacks.LambdaCallback(on_epoch_end=print), False),
        (lambda: callbacks.LambdaCallback(on_train_batch_end=print), True),
        (lambda: callbacks.LambdaCallback(on_train_batch_begin=print), True),
    ],
)
def test_callbacks_that_look_at_each_batch(make: Callable[[], Any], wants: bool) -> None:
    assert observe_each_batch([make()], "train") is wants
    assert observe_each_batch([callbacks.History(), make()], "train") is wants


def test_batches_of_evaluation_and_prediction_are_observed_apart() -> None:
    of_test = callbacks.LambdaCallback(on_test_batch_end=print)
    of_train = callbacks.ModelCheckpoint("unused.keras", save_freq=3)
    kinds: list[Any] = ["train", "test", "predict"]
    assert [observe_each_batch([of_test], kind) for kind in kinds] == [False, True, False]
    assert [observe_each_batch([of_train], kind) for kind in kinds] == [True, False, False]


def compiled(learning_rate: float = 0.05) -> keras.Model:
    keras.utils.set_random_seed(6)
    model = keras.Sequential([keras.layers.Input((4,)), keras.layers.Dense(1)])
    model.compile(keras.optimizers.SGD(learning_rate), "mse", metrics=["mae"])
    return model


def both(
    make: Callable[[], list[callbacks.Callback]], learning_rate: float = 0.05, **options: Any
) -> tuple[keras.Model, keras.Model]:
    """The model that tfdp.fit trained and the one that Keras's fit trained."""
    arguments = {"batch_size": 7, "epochs": 6, "shuffle": False, "verbose": 0} | options
    ours, theirs = compiled(learning_rate), compiled(learning_rate)
    tfdp.fit(ours, ROWS, NUMBERS, callbacks=make(), **arguments)
    theirs.fit(ROWS, NUMBERS, callbacks=make(), **arguments)
    assert ours.history.epoch == theirs.history.epoch
    assert ours.history.history.keys() == theirs.history.history.keys()
    for name, values in theirs.history.history.items():
        np.testing.assert_allclose(ours.history.history[name], values, rtol=1e-5, err_msg=name)
    for mine, other in zip(ours.get_weights(), theirs.get_weights(), strict=True):
        np.testing.assert_allclose(mine, other, atol=1e-6)
    return ours, theirs


def test_csv_and_checkpoints_hold_what_keras_writes(tmp_path: Path) -> None:
    folders = iter((tmp_path / "ours", tmp_path / "theirs"))

    def writing() -> list[callbacks.Callback]:
        folder = next(folders)
        folder.mkdir()
        return [
            callbacks.CSVLogger(folder / "log.csv"),
            callbacks.ModelCheckpoint(folder / "{epoch}.weights.h5", save_weights_only=True),
            callbacks.ModelCheckpoint(folder / "best.keras", monitor="loss", save_best_only=True),
        ]

    both(writing, epochs=3)
    logs = []
    for who in ("ours", "theirs"):
        with (tmp_path / who / "log.csv").open() as file:
            logs.append(list(csv.DictReader(file)))
    assert len(logs[0]) == 3
    for mine, other in zip(*logs, strict=True):
        assert mine.keys() == other.keys()
        for name in ("epoch", "loss", "mae"):  # of the rest, Keras says NA
            assert float(mine[name]) == pytest.approx(float(other[name]), rel=1e-5)
    names = [sorted(path.name for path in (tmp_path / who).iterdir()) for who in ("ours", "theirs")]
    assert names[0] == names[1]
    models = [keras.models.load_model(tmp_path / who / "best.keras") for who in ("ours", "theirs")]
    np.testing.assert_allclose(*(model.get_weights()[0] for model in models), atol=1e-6)


def test_a_loss_that_is_not_a_number_ends_training() -> None:
    model = compiled(learning_rate=1e20)
    history = tfdp.fit(
        model, ROWS, NUMBERS, epochs=9, verbose=0, callbacks=[callbacks.TerminateOnNaN()]
    )
    assert len(history.epoch) < 9
    assert not np.isfinite(history.history["loss"][-1])


def test_a_callback_sees_each_batch_as_keras_shows_it() -> None:
    seen: list[OwnBatches] = []

    def looking() -> list[callbacks.Callback]:
        seen.append(OwnBatches())
        return [seen[-1]]

    both(looking, epochs=2)
    assert len(seen[0].calls) == 2 * 2 * 5
    assert seen[0].calls == seen[1].calls


def test_training_stops_in_the_middle_of_an_epoch_as_keras_does() -> None:
    seen: list[OwnBatches] = []

    def stopping() -> list[callbacks.Callback]:
        seen.append(OwnBatches(stop_after=8))
        return [seen[-1]]

    ours, _ = both(stopping)
    assert ours.history.epoch == [0, 1]
    assert seen[0].calls == seen[1].calls
    assert len(seen[0].calls) == 2 * 8


@pytest.mark.parametrize(
    ("every", "step", "after"), [(1, 0, 1), (3, 0, 3), (3, 2, 3), (3, 3, 6), (10, 25, 30)]
)
def test_the_next_step_to_act_at(every: int, step: int, after: int) -> None:
    assert Acting(every).next_after(step) == after


def test_acts_come_at_their_steps_and_at_the_end() -> None:
    acts = [Acting(3), Acting(4), Acting(100)]
    tfdp.fit(compiled(), ROWS, NUMBERS, batch_size=6, epochs=2, verbose=0, callbacks=acts)
    assert acts[0].steps == [3, 6, 9, 10]
    assert acts[1].steps == [4, 8, 10]
    assert acts[2].steps == [10]


class Open(callbacks.Callback):
    """Counts batches and epochs that have begun and not ended."""

    def __init__(self) -> None:
        super().__init__()
        self.batches = self.epochs = 0

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        self.batches += 1

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.batches -= 1

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self.epochs += 1

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self.epochs -= 1


@pytest.mark.parametrize("asked", range(4))
def test_a_run_stops_only_where_nothing_has_begun_that_has_not_ended(asked: int) -> None:
    """Otherwise a resumed run would repeat the effect of a hook that is in the state."""
    model = compiled()
    workers = workers_of(model.distribute_strategy)
    left = iter([False] * asked + [True] * 9)
    seen = Open()
    with pytest.raises(Stopped) as stopped:
        run_epochs(
            model,
            pipeline.from_source(tfdp.from_arrays(ROWS, NUMBERS), Order(30, 15), workers),
            workers,
            steps_per_epoch=2,
            first_step=0,
            last_step=60,
            all_reduce=GradientAllReduce(),
            callbacks=[seen],
            should_stop=lambda: next(left),
        )
    assert stopped.value.step == int(model.optimizer.iterations.numpy())
    assert (seen.batches, seen.epochs) == (0, stopped.value.step % 2)
