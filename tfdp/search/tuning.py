"""The story of ``python -m tfdp.tune``, from the search space to the published best trial."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import optuna

from cluster import exit_codes
from tfdp import files, recipe
from tfdp.errors import BadInput, TrainingError
from tfdp.log import say
from tfdp.search import child, pictures, publishing, table_files
from tfdp.search.child import Wait
from tfdp.search.coordinator import Coordinator
from tfdp.search.curves import Curves
from tfdp.search.objective import Objective
from tfdp.search.rungs import Rungs
from tfdp.search.screen import Screen
from tfdp.search.search import Search
from tfdp.search.settings import TuneSettings
from tfdp.search.slot import Slot
from tfdp.search.slots import find_slots
from tfdp.search.space import Space, differences
from tfdp.search.storage import open_storage
from tfdp.search.study import Choice, Study
from tfdp.search.table import Table
from tfdp.search.trial import TrialFolder
from tfdp.search.trial_command import Commands

MIN_IDLE_SHARE: Final = 0.02  # of the slots' time: less is not said
CHECK_TIMEOUT_S: Final = 1800.0  # a recipe may download its data


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
        return _tune(commands, wait)
    finally:
        os.close(lock)


def _tune(commands: Commands, wait: Wait) -> Table:
    before = table_files.read_about(commands.settings.workdir)
    commands = _with_threads(commands, before)
    settings = commands.settings
    loaded = recipe.load(settings.recipe, commands.train.hparam)
    space = Space.of(loaded, settings.search, commands.train.hparam)
    space.rehearse(settings.seed)
    identity = _identity(commands, loaded, space)
    _check_is_same_search(settings.workdir, before, identity)
    slots = find_slots(settings, os.environ)
    facts = before.get("facts") or _check_trials(commands, space, slots[0], wait)
    objective = Objective.parse(settings.objective)
    if objective.name not in facts["metrics"]:
        raise BadInput(
            f"--objective is {objective}: evaluations of recipe {settings.recipe} give "
            f"{', '.join(facts['metrics'])}"
        )
    if settings.budget_examples is not None and not facts["counts_examples"]:
        raise BadInput(
            f"--budget_examples is {settings.budget_examples}, and nobody knows how many examples "
            "the recipe's dataset has: limit --trials, or use a tfdp.Source"
        )
    rungs = Rungs.of(settings, facts["total_steps"])
    about = {**identity, "facts": facts}
    _say_how(commands, slots, rungs)
    choices: dict[int, Choice] = {}

    def prepare_trial(choice: Choice) -> None:
        choices[choice.number] = choice
        folder = TrialFolder(settings.workdir, choice.number)
        folder.prepare({"number": choice.number, "params": choice.params})

    curves = Curves(settings.workdir)

    def write(table: Table) -> None:
        table_files.write(table, settings.workdir, about)
        curves.update(table)

    def command_of(number: int, to_step: int | None) -> list[str]:
        folder = TrialFolder(settings.workdir, number)
        return commands.train_trial(folder, choices[number].hparams, to_step)

    with Screen(objective, settings.trials, len(slots)) as screen:
        search = Search(
            Study(
                space,
                objective,
                storage=open_storage(settings.workdir / "study.log"),
                sampler=settings.sampler,
                seed=settings.seed,
                rungs=rungs,
            ),
            rungs,
            objective,
            folder_of=lambda number: TrialFolder(settings.workdir, number).name,
            on_choice=prepare_trial,
        )
        coordinator = Coordinator(
            search,
            settings,
            slots,
            command=command_of,
            total_steps=facts["total_steps"],
            screen=screen,
            on_change=write,
            wait=wait,
        )
        coordinator.run()
    if coordinator.idle_s > MIN_IDLE_SHARE * coordinator.slot_s:
        share = coordinator.idle_s / coordinator.slot_s
        say(
            f"slots waited for results of other slots {share:.0%} of the time, so that the search "
            "can be repeated; more --trials_in_flight or --asynchronous makes that less"
        )
    table = search.table
    table_files.write(table, settings.workdir, about, is_finished=not search.in_flight)
    pictures.draw(search.optuna_study, settings.workdir, objective.name)
    _finish(table, choices, commands, slots[0], facts, wait)
    return table


def _finish(
    table: Table,
    choices: Mapping[int, Choice],
    commands: Commands,
    slot: Slot,
    facts: Mapping[str, Any],
    wait: Wait,
) -> None:
    settings, best = commands.settings, table.best
    if best is None:
        raise TrainingError("no trial has run to its end: there is nothing to publish")
    values = ", ".join(f"{name} {value}" for name, value in best.params.items())
    say(f"best: trial {best.number}, {table.objective.name} {best.objective:.6g} with {values}")
    if settings.publish_dir is not None:
        hparams = choices[best.number].hparams
        publishing.publish(best, hparams, commands, slot, facts["steps_per_epoch"], wait)


def _with_threads(commands: Commands, before: Mapping[str, Any]) -> Commands:
    """Returns the commands with the number of threads of a trial.

    Bits depend on it. So it must not depend on ``--parallel``, and stays as it was.
    """
    settings = commands.settings
    threads = settings.threads_per_trial or before.get("threads_per_trial")
    if threads is None:
        threads = max(1, len(os.sched_getaffinity(0)) // settings.trials_in_flight)
    with_threads = dataclasses.replace(settings, threads_per_trial=threads)
    return dataclasses.replace(commands, settings=with_threads)


def _identity(commands: Commands, loaded: recipe.Recipe, space: Space) -> dict[str, Any]:
    """Returns what makes a search another one."""
    settings = commands.settings
    names = [
        *("objective", "seed", "sampler", "prune", "first_rung_steps", "rung_factor"),
        *("trials_in_flight", "asynchronous", "workers_per_trial", "threads_per_trial"),
    ]
    values = {
        "recipe_sha256": loaded.digest[:16],
        "space": space.describe(),
        **{name: getattr(settings, name) for name in names},
        "trial_flags": commands.of_trials,
    }
    return dict(json.loads(json.dumps(values)))


def _check_is_same_search(
    workdir: Path, before: Mapping[str, Any], identity: Mapping[str, Any]
) -> None:
    """Raises BadInput if the workdir is of another search."""
    if not before:
        return
    changes = differences(before["space"], identity["space"])
    flags_before, flags_now = before["trial_flags"], identity["trial_flags"]
    changes += [
        f"{name} was {flags_before.get(name)} and is {flags_now.get(name)}"
        for name in sorted({*flags_before, *flags_now})
        if flags_before.get(name) != flags_now.get(name)
    ]
    changes += [
        f"{name} was {before.get(name)} and is {value}"
        for name, value in identity.items()
        if name not in ("space", "trial_flags") and before.get(name) != value
    ]
    if changes:
        raise BadInput(
            f"{workdir} belongs to another search: {'; '.join(changes)}. Use another --workdir, or "
            "the values that it was started with"
        )


def _check_trials(commands: Commands, space: Space, slot: Slot, wait: Wait) -> dict[str, Any]:
    """Prepares the first trial in a process of its own, without training it.

    Returns:
        What the process found out; see ``check_process``.

    Raises:
        BadInput: if trials could not train.
    """
    settings = commands.settings
    objective = Objective.parse(settings.objective)
    study = Study(space, objective, sampler=settings.sampler, seed=settings.seed)
    folder = settings.workdir / ".check"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    output = folder / "output.log"
    command = [sys.executable, "-m", "tfdp.search.check_process"]
    code = child.run(
        "the check of the first trial",
        [*command, *commands.check(folder, study.ask().hparams)],
        environ=slot.environ,
        output=output,
        timeout_s=CHECK_TIMEOUT_S,
        wait=wait,
    )
    if code != exit_codes.FINISHED:
        lines = output.read_text(errors="replace").splitlines()
        said = [line.removeprefix("tfdp: ") for line in lines]
        text = "\n".join(said[-20:])
        if code == exit_codes.BAD_INPUT:
            raise BadInput(text)
        raise TrainingError(f"the first trial could not be prepared (exit code {code}):\n{text}")
    facts = json.loads((folder / "facts.json").read_text())
    shutil.rmtree(folder)
    return dict(facts)


def _say_how(commands: Commands, slots: Sequence[Slot], rungs: Rungs) -> None:
    settings = commands.settings
    text = f"{settings.trials} trials of {rungs.total_steps} steps, {len(slots)} at a time"
    if rungs.steps:
        text += f", judged at steps {', '.join(map(str, rungs.steps))}"
    say(f"{text}; threads of a worker: {settings.threads_per_trial} (--threads_per_trial)")
    if not settings.asynchronous and len(slots) > settings.trials_in_flight:
        say(
            f"--trials_in_flight is {settings.trials_in_flight}, so "
            f"{len(slots) - settings.trials_in_flight} slots stay idle; a larger number uses "
            "them, and makes another search"
        )
    if settings.asynchronous:
        say("--asynchronous: results count as they come, so this search can't be repeated")
