"""What precedes the first trial of a search: the space, the slots, the checks."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from cluster import exit_codes
from tfdp import recipe
from tfdp.errors import BadInput, TrainingError
from tfdp.log import PREFIX, say
from tfdp.search import child, table_files
from tfdp.search.child import Wait
from tfdp.search.objective import Objective
from tfdp.search.rungs import Rungs
from tfdp.search.settings import TuneSettings
from tfdp.search.slot import Slot
from tfdp.search.slots import find_slots
from tfdp.search.slots_slurm import is_in_job
from tfdp.search.space import Space, differences
from tfdp.search.study import Study
from tfdp.search.trial_command import Commands

CHECK_TIMEOUT_S: Final = 1800.0  # a recipe may download its data


@dataclasses.dataclass(frozen=True)
class Plan:
    """A search that can begin.

    Args:
        commands: makes the commands of trials.
        space: what may be chosen.
        slots: where trials run.
        rungs: where they are judged.
        steps_per_epoch: updates per epoch.
        about: what makes it this search and no other one, as JSON takes it.
    """

    commands: Commands
    space: Space
    slots: Sequence[Slot]
    rungs: Rungs
    steps_per_epoch: int
    about: dict[str, Any]

    @property
    def settings(self) -> TuneSettings:
        """The flags of the search."""
        return self.commands.settings

    @property
    def objective(self) -> Objective:
        """What the search looks for."""
        return Objective.parse(self.settings.objective)


def plan(commands: Commands, wait: Wait) -> Plan:
    """Plans a search, or the rest of one.

    Args:
        commands: makes the commands of trials.
        wait: see ``child.run``.

    Raises:
        BadInput: if anything is wrong that can be found out before a trial starts.
        SearchStopped: if a signal came.
    """
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
    _check_facts(settings, facts)
    return Plan(
        commands,
        space,
        slots,
        Rungs.of(settings, facts["total_steps"]),
        facts["steps_per_epoch"],
        {**identity, "facts": facts},
    )


def _with_threads(commands: Commands, before: Mapping[str, Any]) -> Commands:
    """Returns the commands with the number of threads of a trial.

    Bits depend on it. So it must not depend on ``--parallel``, and stays as it was.
    """
    settings = commands.settings
    threads = settings.threads_per_trial or before.get("threads_per_trial")
    if threads is None:
        of_task = os.environ.get("SLURM_CPUS_PER_TASK") if is_in_job(os.environ) else None
        cores = len(os.sched_getaffinity(0))
        threads = int(of_task) if of_task else max(1, cores // settings.trials_in_flight)
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
        "the recipe's sha256": loaded.digest[:16],
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
    choice = study.ask()
    folder = settings.workdir / ".check"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    output = folder / "output.log"
    command = [sys.executable, "-m", "tfdp.search.check_process"]
    code = child.run(
        "the check of the first trial",
        [*command, *commands.check(folder, choice.hparams)],
        environ=slot.environ,
        output=output,
        timeout_s=CHECK_TIMEOUT_S,
        wait=wait,
    )
    if code != exit_codes.FINISHED:
        lines = output.read_text(errors="replace").splitlines()
        said = [line.removeprefix(PREFIX) for line in lines]
        text = "\n".join(said[-20:])
        if code == exit_codes.BAD_INPUT:
            raise BadInput(text)
        params = ", ".join(f"{name}={value}" for name, value in choice.params.items())
        raise TrainingError(
            f"the first trial, {params}, could not be prepared (exit code {code}):\n{text}"
        )
    facts = json.loads((folder / "facts.json").read_text())
    shutil.rmtree(folder)
    return dict(facts)


def _check_facts(settings: TuneSettings, facts: Mapping[str, Any]) -> None:
    """Raises BadInput if trials will not give what the search needs."""
    objective = Objective.parse(settings.objective)
    if objective.name not in facts["metrics"]:
        raise BadInput(
            f"--objective is {objective}: evaluations of recipe {settings.recipe} give "
            f"{', '.join(facts['metrics'])}"
        )
    if not facts["has_eval_data"]:
        say(
            f"recipe {settings.recipe} has no eval_data: trials are judged by their training "
            "metrics, which favours those that learn the examples by heart"
        )
    if settings.budget_examples is not None and not facts["counts_examples"]:
        raise BadInput(
            f"--budget_examples is {settings.budget_examples}, and nobody knows how many examples "
            "the recipe's dataset has: limit --trials, or use a tfdp.Source"
        )
