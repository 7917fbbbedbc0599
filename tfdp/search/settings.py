"""The flags of ``python -m tfdp.tune``, checked before anything starts. No TensorFlow in here."""

from __future__ import annotations

import dataclasses
import importlib.util
from pathlib import Path
from typing import Literal, get_args

from tfdp.cli.flags import flag
from tfdp.errors import BadInput
from tfdp.publishing.settings import PublishSettings
from tfdp.run.settings import MAX_COUNT, check_count, check_is_local
from tfdp.search.objective import Objective

Prune = Literal["asha", "hyperband", "none"]
Sampler = Literal["tpe", "random"]


def check_optuna() -> None:
    """Raises BadInput if Optuna is not installed."""
    if importlib.util.find_spec("optuna") is None:
        raise BadInput("a search needs Optuna, which the extra brings: pip install 'tfdp[search]'")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TuneSettings(PublishSettings):
    """The flags of ``python -m tfdp.tune``, checked.

    Raises:
        BadInput: if one is missing, or a value is out of range.
    """

    recipe: str = flag("", "Python file or dotted module with build_model and train_data.")
    workdir: Path = flag(Path(), "Folder for the search: trials, table, pictures.")
    trials: int = flag(40, "Number of trials; with more, a finished search goes on.")
    objective: str = flag("", "NAME:max or NAME:min of a metric of the evaluation.")
    search: tuple[str, ...] = flag(
        (), "NAME=LOW..HIGH[:log] or NAME=A|B|C for a field of HParams; or write search_space."
    )
    parallel: int | None = flag(
        None, "Number of trials at a time; by default 1, or what fits GPUs, hosts or a job."
    )
    workers_per_trial: int = flag(1, "Number of workers that train a trial together.")
    threads_per_trial: int | None = flag(
        None, "Threads of each worker's TensorFlow; cores / trials_in_flight by default."
    )
    hosts: str = flag("", "Run trials on these hosts by ssh, as in h1:2,h2:2; by default here.")
    ssh_config: Path | None = flag(None, "File that ssh reads in place of ~/.ssh/config.")
    seed: int = flag(0, "Determines which hyperparameters are tried.")
    sampler: Sampler = flag("tpe", "How hyperparameters are chosen: tpe or random.")
    prune: Prune = flag("none", "How bad trials are ended early: asha, hyperband or none.")
    first_rung_steps: int | None = flag(
        None, "Updates before a trial is first judged; by default 1/27 of all."
    )
    rung_factor: int = flag(3, "Each rung has so many times the updates of the one before.")
    trials_in_flight: int = flag(
        8, "Number of trials that are chosen before the first of them has ended."
    )
    asynchronous: bool = flag(
        False, "Use results as they come: no slot waits, but no search can be repeated."
    )
    max_failures: int = flag(5, "The search ends after so many failed trials in a row.")
    trial_timeout_s: float | None = flag(None, "Seconds of training after which a trial failed.")
    timeout_s: float | None = flag(None, "Seconds after which the search ends with what it has.")
    budget_examples: int | None = flag(
        None, "No trial starts after so many training examples, of all trials together."
    )
    export_dir: Path | None = flag(
        None, "Folder to publish the best trial in: WORKDIR/model; none: don't publish."
    )
    refit_epochs: int = flag(0, "Train the best trial on for so many epochs, then publish it.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.recipe:
            raise BadInput("--recipe is missing: name a Python file or a dotted module")
        if not str(self.workdir) or str(self.workdir) == ".":
            raise BadInput("--workdir is missing: name a folder for the search")
        if not self.objective:
            raise BadInput(
                "--objective is missing: name a metric of the evaluation, as in accuracy:max"
            )
        Objective.parse(self.objective)
        check_is_local("workdir", self.workdir)
        check_is_local("export_dir", self.export_dir)
        for name, choices in (("prune", get_args(Prune)), ("sampler", get_args(Sampler))):
            if (value := getattr(self, name)) not in choices:
                raise BadInput(f"--{name} is {value}: it has to be one of {', '.join(choices)}")
        for name in (
            *("trials", "parallel", "workers_per_trial", "threads_per_trial"),
            *("first_rung_steps", "trials_in_flight", "max_failures", "budget_examples"),
        ):
            check_count(name, getattr(self, name), least=1)
        check_count("rung_factor", self.rung_factor, least=2)
        check_count("refit_epochs", self.refit_epochs, least=0)
        for name in ("trial_timeout_s", "timeout_s"):
            seconds = getattr(self, name)
            if seconds is not None and not 0 < seconds <= MAX_COUNT:
                raise BadInput(f"--{name} is {seconds}: it has to be positive, up to {MAX_COUNT}")
        if not 0 <= self.seed < 1 << 32:
            raise BadInput(f"--seed is {self.seed}: it has to be from 0 to {(1 << 32) - 1}")
        if self.first_rung_steps is not None and self.prune == "none":
            raise BadInput(
                f"--first_rung_steps is {self.first_rung_steps}, and nothing is pruned: add "
                "--prune=asha or --prune=hyperband"
            )
        if self.ssh_config is not None and not self.hosts:
            raise BadInput("--ssh_config is for trials on other hosts: add --hosts")
        if self.publish_dir is None and (self.gates or self.refit_epochs):
            raise BadInput(
                "--export_dir is none, so nothing is published: leave out --require_min, "
                "--require_max, --not_worse_than_current and --refit_epochs"
            )

    @property
    def publish_dir(self) -> Path | None:
        """The folder to publish the best in: ``--export_dir``, by default ``WORKDIR/model``."""
        if self.export_dir is None:
            return self.workdir / "model"
        return None if str(self.export_dir) == "none" else self.export_dir
