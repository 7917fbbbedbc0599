"""What ``python -m tfdp.train`` does, from the first meeting of the workers to the summary."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfdp import callbacks, evaluation, feed, keras_private, standing, state
from tfdp.callbacks import AtSteps
from tfdp.checkpoints import Checkpoints
from tfdp.errors import BadInput, Refused, Stopped, TrainingError
from tfdp.exchange import Exchange
from tfdp.files import Claim, write_whole
from tfdp.fitting import check_model, run
from tfdp.log import say
from tfdp.profiling import Profile
from tfdp.publishing import releasing
from tfdp.recipe import Recipe
from tfdp.reports import Report
from tfdp.saving import Saver
from tfdp.settings import Settings
from tfdp.signals import Signals
from tfdp.sources import Source
from tfdp.starting import Data, compare, data_of, training_batches, versions
from tfdp.steps import read_metrics
from tfdp.sums import BYTES_PER_HOP
from tfdp.team import Team, connect, team_of

DEFAULT_EPOCHS = 10


def train(settings: Settings, recipe: Recipe, signals: Signals) -> None:
    """Trains, evaluates, publishes and sums up; the same call goes on where an earlier one ended.

    Raises:
        BadInput: before training, on every worker.
        Stopped: when a signal ended it; what was done is saved.
        TrainingError: when it can't go on.
    """
    strategy = connect(settings.communication, settings.startup_timeout_s)
    team = team_of(strategy)
    compare(team, settings.shared(), recipe)

    keras.utils.set_random_seed(settings.seed % (1 << 32))
    if settings.mixed_precision != "none":
        keras.config.set_dtype_policy(f"mixed_{settings.mixed_precision}")
    with strategy.scope():
        model = recipe.build_model(recipe.hparams)
    team.settle()  # what all may find wrong now, all have to be there to say
    check_model(model)
    train_data = data_of(recipe, "train_data")
    eval_data = data_of(recipe, "eval_data") if recipe.eval_data is not None else None

    with Run(settings, recipe, team, model, train_data, eval_data) as the_run:
        if the_run.is_finished():
            if team.is_chief:
                say(f"{settings.workdir} is finished at step {the_run.last_step}: nothing to do")
            team.settle()
            return
        with signals.awaited():
            the_run.fit(lambda: signals.received is not None)
        the_run.conclude()


class Run:
    """A run in its workdir: where it stands, and what is left to do.

    Everything here happens on all workers at the same time; the chief alone touches the workdir,
    and tells the others what it found.
    """

    def __init__(
        self,
        settings: Settings,
        recipe: Recipe,
        team: Team,
        model: keras.Model,
        train_data: Data,
        eval_data: Data | None,
    ) -> None:
        self._settings = settings
        self._recipe = recipe
        self._team = team
        self._model = model
        self._train_data = train_data
        self._eval_data = eval_data
        self._claim: Claim | None = None
        self._checkpoints: Checkpoints | None = None
        if team.is_chief:
            self._claim = Claim(settings.workdir)
            folder = settings.workdir / "checkpoints"
            self._checkpoints = Checkpoints(folder, settings.keep_checkpoints, self._claim)
        self._callbacks: list[keras.callbacks.Callback] = [keras.callbacks.History()]
        self._history: dict[str, Any] = {}
        self._scores: dict[str, Any] = {}
        self._logs: dict[str, Any] = {}
        self._examples_per_s: float | None = None
        self._told_to_stop: Callable[[], bool] = lambda: False

        self._standing = standing.find(
            team,
            self._checkpoints,
            settings.workdir / "summary.json",
            {
                "recipe_sha256": recipe.digest,
                "seed": settings.seed,
                "global_batch_size": settings.global_batch_size,
                "mixed_precision": settings.mixed_precision,
                "gradient_dtype": settings.gradient_dtype,
                "bytes_per_pack": settings.bytes_per_pack,
            },
            settings.adopt_checkpoints,
        )
        self.first_step = self._standing.step
        self._batches = training_batches(
            train_data, team, settings, recipe.preprocess, self.first_step
        )
        self._check_fit()
        self._exchange = self._settled_exchange()
        self._saver = Saver(
            model, team, self._checkpoints, self._callbacks, self._standing, settings.keep_best
        )
        self._standing = dataclasses.replace(self._standing, checkpoint=None)  # it is large
        epochs = settings.epochs or DEFAULT_EPOCHS
        self.last_step = settings.steps or epochs * self._batches.steps_per_epoch
        if self._standing.about["stopped_early"]:
            self.last_step = self.first_step
        if self.first_step > self.last_step:
            raise BadInput(
                f"{settings.workdir} is at step {self.first_step}, past the {self.last_step} that "
                "this run asks for: ask for more --steps or --epochs, or use another --workdir"
            )

    def _make_callbacks(self, evaluated: Sequence[str]) -> list[keras.callbacks.Callback]:
        """The recipe's callbacks, and Keras's History after them, as in ``Model.fit``."""
        recipe = self._recipe
        if recipe.callbacks is None:
            return [keras.callbacks.History()]
        made = recipe.callbacks(recipe.hparams)
        try:
            callbacks.check(made, [f"val_{name}" for name in evaluated])
            callbacks.for_worker(made, self._team)
        except BadInput as error:
            raise BadInput(f"recipe {recipe.name}: {error}") from None
        return [*made, keras.callbacks.History()]

    def _settled_exchange(self) -> Exchange:
        """How gradients are exchanged, the pack size as the run began with, also on other workers.

        The order of summing depends on it; chosen anew, a run that goes on would differ in the last
        bits from one that was never stopped.
        """
        there = self._standing.about["settings"]
        exchange = Exchange(there["gradient_dtype"], there["bytes_per_pack"])
        exchange = exchange.settled_for(self._model, self._team.replicas)
        there["bytes_per_pack"] = exchange.bytes_per_pack
        return exchange

    def _check_fit(self) -> None:
        """Builds the model, and finds out what else would fail only after hours of training."""
        try:
            keras_private.build(self._model, self._batches.element_spec)
        except (TypeError, ValueError, RuntimeError) as error:
            raise BadInput(
                f"recipe {self._recipe.name}: the model does not take what train_data and "
                f"preprocess give, {self._batches.element_spec}: {error}"
            ) from error
        state.check_optimizers(self._model)
        values = read_metrics(self._model)() if self._eval_data is not None else {}
        names = [name for name, value in values.items() if isinstance(value, (int, float))]
        self._team.settle()
        train_spec = feed.element_spec(self._train_data)
        if self._eval_data is not None:
            eval_spec = feed.element_spec(self._eval_data)
            evaluation.check(self._eval_data, self._settings.auto_shard, self._team)
            if not feed.are_alike(train_spec, eval_spec):
                raise BadInput(
                    f"recipe {self._recipe.name}: eval_data gives {eval_spec}, which differs from "
                    f"what train_data gives: {train_spec}"
                )
        by, _, _ = self._settings.keep_best.rpartition(":")
        if by and by not in names:
            raise BadInput(
                f"--keep_best is {self._settings.keep_best}: evaluations of recipe "
                f"{self._recipe.name} give {', '.join(names) or 'nothing'}"
            )
        self._callbacks = self._make_callbacks(names)
        folder = self._settings.publish_dir
        if folder is not None:
            self._team.by_chief(
                lambda: releasing.check(
                    folder, self._settings, self._recipe, self._model, self._train_data, names
                )
            )

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *_: object) -> None:
        if self._checkpoints is not None:
            self._checkpoints.wait()

    def is_finished(self) -> bool:
        """Whether there is nothing left to do: trained, published and summed up."""
        summary = self._standing.summary
        return summary.get("steps") == self.last_step == self.first_step and (
            self._settings.publish_dir is None or summary.get("export_path") is not None
        )

    def fit(self, told_to_stop: Callable[[], bool]) -> None:
        """Trains from where the run stands to its last step, saving on the way."""
        if self.first_step and self._team.is_chief:
            say(f"going on from step {self.first_step} of {self.last_step}")
        self._told_to_stop = told_to_stop
        profile = None
        if self._settings.profile:
            is_large = self._exchange.bytes_of(self._model) > BYTES_PER_HOP
            reads_dataset = not isinstance(self._train_data, Source)
            profile = Profile(self._team, self._settings, reads_dataset, is_large)
        report = Report(
            self._team, self._settings, self._batches, self.first_step, self.last_step, profile
        )
        acts: list[keras.callbacks.Callback] = [report, *self._callbacks]
        if self._settings.eval_every_steps and self._eval_data is not None:
            acts.append(_Act(self._settings.eval_every_steps, self._evaluate_between, report))
        acts.append(_Act(self._settings.checkpoint_every_steps, self._save, report))
        if profile is not None:
            acts.append(profile)

        def told() -> bool:
            self._saver.check()  # a full disk is found out now, not at the next save
            return told_to_stop()

        validates = self._recipe.callbacks is not None and self._eval_data is not None
        try:
            history = run(
                self._model,
                self._batches,
                self._team,
                steps_per_epoch=self._batches.steps_per_epoch,
                first_step=self.first_step,
                last_step=self.last_step,
                callbacks=acts,
                validate=self._evaluate_aside if validates else None,
                restore=self._saver.restore,
                told_to_stop=told,
                observe=report.observe,
                accumulate_steps=self._settings.accumulate_steps,
                exchange=self._exchange,
            )
            self._wait_for_chief()  # whatever comes from here on, training is not lost
        except Stopped as stopped:
            self._saver.save(stopped.step)
            self._wait_for_chief()
            raise
        finally:
            report.close()
        self._examples_per_s = report.examples_per_s
        self._history = {"epoch": history.epoch, **history.history}
        self.last_step = self._saver.step  # callbacks may have stopped it early

    def conclude(self) -> None:
        """Evaluates, publishes and writes the summary."""
        digests = self._team.gather_bytes(state.weights_sha256(self._model).encode())
        if len(set(digests)) > 1:
            raise TrainingError(f"the workers' weights differ: {[d.decode() for d in digests]}")
        self._logs = read_metrics(self._model)()
        if self._eval_data is not None:
            self._scores = self._evaluate()

        def finish() -> None:
            self._saver.wait()
            try:
                path = self._publish(digests[0].decode())
                self._sum_up(digests[0].decode(), path)
            except (OSError, tf.errors.OpError) as error:
                raise TrainingError(
                    f"trained, but not published and summed up: {error}. Make room, or see to "
                    "what is wrong there, and start the same command again; it has only that to do"
                ) from error
            except Refused as error:
                raise TrainingError(
                    f"{error}. The run is saved: start the same command again with lower demands, "
                    "and it has only that to do"
                ) from error

        try:
            self._team.by_chief(finish)
        except BadInput as error:  # too late to be called so
            raise TrainingError(str(error)) from error
        self._team.settle()

    def _evaluate(
        self,
        callbacks: keras.callbacks.CallbackList | None = None,
        between_calls: Callable[[], None] = lambda: None,
    ) -> dict[str, Any]:
        data = self._eval_data
        assert data is not None
        batch_size = self._settings.global_batch_size
        return evaluation.evaluate(
            self._model,
            data if isinstance(data, Source) else data.batch(batch_size),
            batch_size=batch_size if isinstance(data, Source) else None,
            preprocess=self._recipe.preprocess,
            auto_shard=self._settings.auto_shard,
            callbacks=callbacks,
            between_calls=between_calls,
        )

    def _stop_if_told(self, step: int) -> None:
        told = self._team.gather(np.array([self._told_to_stop()], np.int32))[:, 0]
        if told.any():
            raise Stopped(step, int(told.argmax()))

    def _evaluate_aside(
        self,
        callbacks: keras.callbacks.CallbackList | None = None,
        between_calls: Callable[[], None] = lambda: None,
    ) -> dict[str, Any]:
        """Evaluates in the middle of training, whose own metrics must not notice."""
        rows = state.metric_rows(self._model)
        try:
            return self._evaluate(callbacks, between_calls)
        finally:
            state.set_metric_rows(self._model, rows)

    def _evaluate_between(self, step: int, report: Report) -> None:
        is_last = step == self.last_step or self._model.stop_training
        if is_last and not self._settings.keep_best:
            return  # conclude() does
        # What decides on a checkpoint is looked at to its end, or a resumed run keeps another.
        may_stop = (
            (lambda: None) if self._settings.keep_best else (lambda: self._stop_if_told(step))
        )
        scores = self._evaluate_aside(between_calls=may_stop)
        report.evaluated(step, scores)
        self._saver.save_if_best(step, scores, bool(self._model.stop_training))

    def _save(self, step: int, report: Report) -> None:
        self._saver.save(step, bool(self._model.stop_training))

    def _wait_for_chief(self) -> None:
        self._saver.wait()
        self._team.settle()

    def _publish(self, weights_sha256: str) -> Path | None:
        folder = self._settings.publish_dir
        if folder is None:
            return None
        return releasing.publish(
            folder,
            self._settings,
            self._recipe,
            self._model,
            self._train_data,
            self._eval_data,
            {
                "run": self._standing.about["run"],
                "step": self.last_step,
                "weights_sha256": weights_sha256,
                "metrics": self._logs,
                "eval_metrics": self._scores,
            },
            self._confirm,
        )

    def _confirm(self) -> None:
        assert self._claim is not None
        self._claim.check()

    def _sum_up(self, weights_sha256: str, path: Path | None) -> None:
        examples = self._batches.examples_before
        summary = {
            "steps": self.last_step,
            "examples": None if examples is None else examples(self.last_step),
            "workers": self._team.workers,
            "replicas": self._team.replicas,
            "seed": self._settings.seed,
            "metrics": self._logs,
            "eval_metrics": self._scores,
            "history": self._history,
            "best": self._saver.best,
            "examples_per_s": self._examples_per_s,
            "restarts": self._standing.about["restarts"],
            "weights_sha256": weights_sha256,
            "export_path": None if path is None else str(path),
            **versions(),
        }
        self._confirm()
        write_whole(self._settings.workdir / "summary.json", json.dumps(summary, indent=2) + "\n")
        scores = "  ".join(
            f"{name} {value:.4g}"
            for name, value in self._scores.items()
            if isinstance(value, (int, float))  # a metric may give a list
        )
        published = "" if path is None else f", published as {path}"
        say(f"finished at step {self.last_step}{published}" + (f"  {scores}" if scores else ""))


class _Act(AtSteps):
    def __init__(
        self, every_steps: int, act: Callable[[int, Report], None], report: Report
    ) -> None:
        super().__init__(every_steps)
        self._act = act
        self._report = report

    def on_step(self, step: int, logs: dict[str, float]) -> None:
        self._act(step, self._report)
