"""The story of ``python -m tfdp.tune``, from the search space to the published best trial."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Final

import optuna

from tfdp import files
from tfdp.errors import TrainingError
from tfdp.log import say
from tfdp.search import pictures, publishing, table_files
from tfdp.search.child import Wait
from tfdp.search.coordinator import Coordinator
from tfdp.search.curves import Curves
from tfdp.search.planning import Plan, plan
from tfdp.search.screen import Screen
from tfdp.search.search import Search
from tfdp.search.settings import TuneSettings
from tfdp.search.space import hparam_flags
from tfdp.search.storage import open_storage
from tfdp.search.study import Choice, Study
from tfdp.search.table import Table
from tfdp.search.trial import TrialFolder
from tfdp.search.trial_command import Commands

MIN_IDLE_SHARE: Final = 0.02  # of the slots' time: less is not said


def tune(settings: TuneSettings, trial_argv: Sequence[str], wait: Wait) -> Table:
    """Searches, and publishes the best trial; the same call goes on with an unfinished search.

    Args:
        settings: flags of the search.
        trial_argv: flags of ``python -m tfdp.train`` for all trials.
        wait: waits for a time in seconds, or for an event; returns signals to stop.

    Returns:
        The table of all trials.

    Raises:
        BadInput: before any trial, if something is wrong; or if a trial finds that.
        SearchStopped: if a signal ended the search.
        TrainingError: if the search can't go on, or the best trial is not published.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    commands = Commands.of(settings, trial_argv)
    lock = files.lock_workdir(settings.workdir)
    try:
        return _Tuning(plan(commands, wait), wait).run()
    except OSError as error:
        raise TrainingError(
            f"the search can't go on: {error}. When this is repaired, the same command goes on"
        ) from error
    finally:
        os.close(lock)


class _Tuning:
    """A planned search on its way to the published best trial."""

    def __init__(self, plan: Plan, wait: Wait) -> None:
        self._plan = plan
        self._workdir = plan.settings.workdir
        self._wait = wait
        self._choices: dict[int, Choice] = {}
        self._curves = Curves(self._workdir)

    def run(self) -> Table:
        """Runs the trials, shows what came out, and publishes the best one."""
        self._say_how()
        if not (self._workdir / "search.json").exists():  # trials without it are of no known search
            self._write(Table([], self._plan.objective))
        study = Study(
            self._plan.space,
            self._plan.objective,
            storage=open_storage(self._workdir / "study.log"),
            sampler=self._plan.settings.sampler,
            seed=self._plan.settings.seed,
            rungs=self._plan.rungs,
        )
        search = Search(
            study,
            self._plan.rungs,
            self._plan.objective,
            folder_of=lambda number: TrialFolder(self._workdir, number).name,
            on_choice=self._prepare_trial,
        )
        self._run_trials(search)
        self._write(search.table, is_finished=not search.in_flight)
        pictures.draw(study.optuna_study, self._workdir, self._plan.objective.name)
        self._publish_best(search.table)
        return search.table

    def _run_trials(self, search: Search) -> None:
        plan = self._plan
        with Screen(plan.objective, plan.settings.trials, len(plan.slots)) as screen:
            coordinator = Coordinator(
                search,
                plan.settings,
                plan.slots,
                command=self._command_of,
                total_steps=plan.rungs.total_steps,
                screen=screen,
                on_change=self._write,
                wait=self._wait,
            )
            coordinator.run()
        if coordinator.idle_s > MIN_IDLE_SHARE * coordinator.slot_s:
            share = coordinator.idle_s / coordinator.slot_s
            say(
                f"slots waited for results of other slots {share:.0%} of the time, so that the "
                "search can be repeated; more --trials_in_flight or --asynchronous makes that less"
            )

    def _prepare_trial(self, choice: Choice) -> None:
        self._choices[choice.number] = choice
        folder = TrialFolder(self._workdir, choice.number)
        hparam = hparam_flags(choice.hparams)  # for who starts the run by hand
        folder.prepare({"number": choice.number, "params": choice.params, "hparam": hparam})

    def _command_of(self, number: int, to_step: int | None) -> list[str]:
        folder = TrialFolder(self._workdir, number)
        return self._plan.commands.train_trial(folder, self._choices[number].hparams, to_step)

    def _write(self, table: Table, *, is_finished: bool = False) -> None:
        table_files.write(table, self._workdir, self._plan.about, is_finished=is_finished)
        self._curves.update(table)

    def _publish_best(self, table: Table) -> None:
        best = table.best
        if best is None and any(row.state == "running" for row in table):
            say("no trial has run to its end yet: the same command goes on")
            return
        if best is None:
            raise TrainingError("no trial has run to its end: there is nothing to publish")
        values = ", ".join(
            f"{name} {value:.6g}" if isinstance(value, float) else f"{name} {value}"
            for name, value in best.params.items()
        )
        say(f"best: trial {best.number}, {table.objective.name} {best.objective:.6g} with {values}")
        if self._plan.settings.publish_dir is not None:
            publishing.publish(
                best,
                self._choices[best.number].hparams,
                self._plan.commands,
                self._plan.slots[0],
                self._plan.steps_per_epoch,
                self._wait,
            )

    def _say_how(self) -> None:
        settings, rungs = self._plan.settings, self._plan.rungs
        slots = len(self._plan.slots)
        text = f"{settings.trials} trials of {rungs.total_steps} steps, {slots} at a time"
        if rungs.steps:
            text += f", judged at steps {', '.join(map(str, rungs.steps))}"
        say(f"{text}; threads of a worker: {settings.threads_per_trial} (--threads_per_trial)")
        if settings.asynchronous:
            say("--asynchronous: results count as they come, so this search can't be repeated")
        elif slots > settings.trials_in_flight:
            say(
                f"--trials_in_flight is {settings.trials_in_flight}, so "
                f"{slots - settings.trials_in_flight} slots stay idle; a larger number uses "
                "them, and makes another search"
            )
