"""The story of ``python -m tfdp.train``, from connecting the workers to the summary."""

from __future__ import annotations

from tfdp import files
from tfdp.cli.signals import Signals
from tfdp.recipe import Recipe
from tfdp.run.preparing import prepare
from tfdp.run.settings import TrainSettings
from tfdp.run.startup import asked_of, meet_elastic
from tfdp.workers.standstill import StandstillWatch


def train(settings: TrainSettings, recipe: Recipe, signals: Signals) -> None:
    """Trains, evaluates, publishes and sums up; the same call resumes an unfinished run.

    Raises:
        BadInput: before training, on all workers.
        Stopped: if a signal ended the run; its state is saved.
        TrainingError: if the run can't go on.
    """
    workers, membership = meet_elastic(settings, recipe)
    with StandstillWatch(settings.hang_timeout_s, workers.index):
        if membership is not None:  # before, nobody could know which worker would be the chief
            # A frozen chief of this run, whose lease has expired, may still have its lock.
            workers.run_on_chief(lambda: files.lock_workdir(settings.workdir, is_shared=True))
        run = prepare(settings, recipe, workers, membership)
        try:
            if run.is_finished or run.has_paused:
                run.say_nothing_to_do()
            else:
                with signals.deferred():
                    run.train(lambda: signals.received is not None)
                run.evaluate()
                if run.is_pausing:
                    run.write_pause()
                else:
                    run.publish_and_sum_up()
        finally:
            run.saver.wait()
        if membership is not None and workers.is_chief:
            membership.finish(asked_of(settings))
