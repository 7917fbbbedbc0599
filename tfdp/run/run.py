"""A prepared run: it trains, evaluates, publishes and sums up."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfdp.checkpoints.saving import Saver
from tfdp.data.pipeline import Batches
from tfdp.data.sources import Source
from tfdp.errors import BadInput, Paused, Refused, Regrouping, Stopped, TrainingError
from tfdp.files import Claim
from tfdp.log import say
from tfdp.provenance import weights_sha256
from tfdp.publishing import publish_recipe
from tfdp.recipe import Recipe
from tfdp.run import pausing, summary
from tfdp.run.profiling import Profile
from tfdp.run.progress import Progress
from tfdp.run.recipe_data import RecipeData
from tfdp.run.settings import TrainSettings
from tfdp.step.all_reduce import BYTES_PER_HOP
from tfdp.step.gradients import GradientAllReduce
from tfdp.step.metrics import local_metric_states, read_metrics, set_local_metric_states
from tfdp.trainer.callbacks import StepCallback
from tfdp.trainer.epochs import run_epochs
from tfdp.trainer.timing import StepTime
from tfdp.whereabouts import marked
from tfdp.workers.collectives import Workers
from tfdp.workers.membership import Membership


@dataclasses.dataclass(kw_only=True)
class Run:
    """A prepared run in its workdir. All workers call its methods at the same time.

    Only the chief touches the workdir.

    Args:
        settings: flags of the run.
        recipe: recipe of the run.
        workers: the workers.
        membership: which workers are away, if the run may go on without some; None if not.
        model: the model, at the resume point.
        data: the recipe's data.
        batches: training batches, from the resume point on.
        callbacks: the recipe's callbacks, and Keras's History.
        all_reduce: how gradients are summed over replicas.
        saver: saves and restores the run.
        claim: claim to the workdir, on the chief; None on other workers.
        about: description of the run that its checkpoints contain.
        last_summary: summary of the last time that the run finished; empty if it never did.
        first_step: number of updates done at the resume point.
        last_step: number of updates at the end.
        pause_step: number of updates at which this command pauses; None if it goes to the end.
        has_paused: whether the run has paused at that step already.
    """

    settings: TrainSettings
    recipe: Recipe
    workers: Workers
    membership: Membership | None
    model: keras.Model
    data: RecipeData
    batches: Batches
    callbacks: list[keras.callbacks.Callback]
    all_reduce: GradientAllReduce
    saver: Saver
    claim: Claim | None
    about: dict[str, Any]
    last_summary: dict[str, Any]
    first_step: int
    last_step: int
    pause_step: int | None
    has_paused: bool
    is_pausing: bool = False  # whether the run is at ``pause_step``
    results: summary.Results = dataclasses.field(default_factory=summary.Results)

    @property
    def is_finished(self) -> bool:
        """Whether the run is trained, published and summed up already."""
        is_published = self.last_summary.get("export_path") is not None
        return self.last_summary.get("steps") == self.last_step == self.first_step and (
            self.settings.publish_dir is None or is_published
        )

    def say_nothing_to_do(self) -> None:
        """Prints that the run is finished."""
        if self.workers.is_chief:
            state = "has paused" if self.has_paused else "is finished"
            step = self.pause_step if self.has_paused else self.last_step
            say(f"{self.settings.workdir} {state} at step {step}: nothing to do")
        self.workers.settle()

    def train(self, should_stop: Callable[[], bool]) -> None:
        """Trains from the resume point to the last step or the pause, and saves on the way."""
        if self.first_step == self.pause_step:  # killed before its results were written
            self.is_pausing = True
            return
        if self.first_step and self.workers.is_chief:
            say(f"going on from step {self.first_step} of {self.last_step}")
        profile = self._profile()
        progress = Progress(
            self.workers, self.settings, self.batches, self.first_step, self.last_step
        )

        def observe(times: Sequence[StepTime]) -> None:
            progress.observe(times)
            if profile is not None:
                profile.observe(times)

        def should_stop_or_fail() -> bool:
            self.saver.check()  # a full disk is reported now, not at the next save
            return should_stop()

        can_validate = self.recipe.callbacks is not None and self.data.eval is not None
        try:
            history = run_epochs(
                self.model,
                self.batches,
                self.workers,
                steps_per_epoch=self.batches.steps_per_epoch,
                first_step=self.first_step,
                last_step=self.last_step,
                callbacks=[
                    progress,
                    *self.callbacks,
                    *self._step_callbacks(progress, should_stop),
                    *([] if profile is None else [profile]),
                ],
                validate=self._evaluate_during_training if can_validate else None,
                may_compile=False,
                restore=self.saver.restore_after_hooks,
                should_stop=should_stop_or_fail,
                observe=observe,
                accumulate_steps=self.settings.accumulate_steps,
                all_reduce=self.all_reduce,
            )
            self._wait_for_saver()  # if something fails from here on, training is saved
        except (Stopped, Regrouping) as stopped:
            self.saver.save(stopped.step)
            self._wait_for_saver()
            raise
        except Paused as paused:
            self.saver.save(paused.step)
            self._wait_for_saver()
            self.is_pausing = True
            return
        finally:
            progress.close()
            if profile is not None:
                profile.close()
        self.results.examples_per_s = progress.examples_per_s
        self.results.history = {"epoch": history.epoch, **history.history}
        self.last_step = self.saver.step  # callbacks may have stopped the run early

    def evaluate(self) -> None:
        """Checks that all workers have the same weights, and evaluates."""
        own_sha256 = weights_sha256(self.model)
        digests = [each.decode() for each in self.workers.gather_bytes(own_sha256.encode())]
        if len(set(digests)) > 1:
            raise TrainingError(f"the workers' weights differ: {digests}")
        self.results.weights_sha256 = own_sha256
        self.results.metrics = read_metrics(self.model)
        if self.data.eval is not None:
            self.results.eval_metrics = self.data.evaluate(self.model, self.settings)

    @marked("publishing")
    def publish_and_sum_up(self) -> None:
        """Publishes the model and writes the summary, on the chief."""

        def finish() -> None:
            self.saver.wait()
            try:
                path = self._publish()
                self._write_summary(path)
            except (OSError, tf.errors.OpError) as error:
                raise TrainingError(
                    f"training is saved, but publishing or summary.json failed: {error}. Make room "
                    "or fix the cause, and start the same command again; it does only the rest"
                ) from error
            except Refused as error:
                raise TrainingError(
                    f"{error}. The run is saved: the same command with other conditions only "
                    "publishes"
                ) from error

        try:
            self.workers.run_on_chief(finish)
        except BadInput as error:  # after training, it is exit code 1 and not 2
            raise TrainingError(str(error)) from error
        self.workers.settle()

    @marked("writing the results of a pause")
    def write_pause(self) -> None:
        """Writes the results at a pause, on the chief."""
        step = self.saver.step

        def finish() -> None:
            assert self.claim is not None
            self.claim.check()
            try:
                pausing.write(
                    self.settings.workdir,
                    {
                        "steps": step,
                        "examples": self._examples_until(step),
                        "metrics": self.results.metrics,
                        "eval_metrics": self.results.eval_metrics,
                        "weights_sha256": self.results.weights_sha256,
                    },
                )
            except OSError as error:
                raise TrainingError(
                    f"step {step} is saved, but its results could not be written: {error}. Make "
                    "room, and start the same command again"
                ) from error
            say(f"paused at step {step}: the same command without --pause_at_step goes on")

        self.workers.run_on_chief(finish)
        self.workers.settle()

    def _examples_until(self, step: int) -> int | None:
        examples_before = self.batches.examples_before
        return None if examples_before is None else examples_before(step)

    def _step_callbacks(
        self, progress: Progress, should_stop: Callable[[], bool]
    ) -> list[StepCallback]:
        """Returns the callbacks that evaluate and save every so many steps."""
        found = []
        if self.settings.eval_every_steps and self.data.eval is not None:
            evaluate = functools.partial(self._evaluate_at_step, progress, should_stop)
            found.append(StepCallback(self.settings.eval_every_steps, evaluate))
        found.append(StepCallback(self.settings.checkpoint_every_steps, self._save))
        if self.pause_step is not None:
            found.append(StepCallback(self.pause_step, self._pause))
        return found

    def _pause(self, step: int) -> None:
        if step == self.pause_step and not self.model.stop_training:
            raise Paused(step)

    def _save(self, step: int) -> None:
        self.saver.save(step, bool(self.model.stop_training))
        if self.membership is not None and step < self.last_step and not self.model.stop_training:
            newcomers = self.membership.newcomers()
            if newcomers:
                raise Regrouping(step, newcomers)

    def _evaluate_at_step(
        self, progress: Progress, should_stop: Callable[[], bool], step: int
    ) -> None:
        is_last = step == self.last_step or self.model.stop_training
        if is_last and not self.settings.keep_best:
            return  # ``evaluate`` follows

        def stop_if_asked() -> None:
            asked = self.workers.gather(np.array([should_stop()], np.int32))[:, 0]
            if asked.any():
                raise Stopped(step, self.workers.name(int(asked.argmax())))

        # An evaluation that chooses the best checkpoint must not be cut short: a resumed run would
        # choose another one.
        between_calls = (lambda: None) if self.settings.keep_best else stop_if_asked
        scores = self._evaluate_during_training(between_calls=between_calls)
        progress.evaluated(step, scores)
        self.saver.save_if_best(step, scores, bool(self.model.stop_training))

    def _evaluate_during_training(self, **options: Any) -> dict[str, Any]:
        """Evaluates without any effect on the metrics of training."""
        states = local_metric_states(self.model)
        try:
            return self.data.evaluate(self.model, self.settings, **options)
        finally:
            set_local_metric_states(self.model, states)

    def _wait_for_saver(self) -> None:
        self.saver.wait()
        self.workers.settle()

    def _profile(self) -> Profile | None:
        if not self.settings.profile:
            return None
        is_bandwidth_bound = self.all_reduce.gradient_bytes(self.model) > BYTES_PER_HOP
        reads_dataset = not isinstance(self.data.train, Source)
        return Profile(self.workers, self.settings, reads_dataset, is_bandwidth_bound)

    def _publish(self) -> Path | None:
        folder = self.settings.publish_dir
        if folder is None:
            return None
        assert self.claim is not None
        return publish_recipe.publish(
            folder,
            self.settings,
            self.recipe,
            self.model,
            self.data.train,
            self.data.eval,
            {
                "run": self.about["run"],
                "step": self.last_step,
                "weights_sha256": self.results.weights_sha256,
                "metrics": self.results.metrics,
                "eval_metrics": self.results.eval_metrics,
            },
            confirm=self.claim.check,
        )

    def _write_summary(self, export_path: Path | None) -> None:
        assert self.claim is not None
        self.claim.check()
        summary.write(
            self.settings.workdir / "summary.json",
            self.results,
            steps=self.last_step,
            examples=self._examples_until(self.last_step),
            workers=self.workers.count,
            replicas=self.workers.replicas,
            seed=self.settings.seed,
            best=self.saver.best,
            restarts=self.about["restarts"],
            export_path=export_path,
        )
