"""The Optuna study of a search: it chooses hyperparameters, and judges trials at their rungs.

Equal calls in equal order give equal answers: for each trial, the sampler is made anew, with a seed
that depends on the search's seed and the trial's number alone.
"""

from __future__ import annotations

import dataclasses
import warnings
from typing import Any

import numpy as np
import optuna
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.trial import TrialState

from tfdp.search.objective import Objective
from tfdp.search.rungs import Rungs
from tfdp.search.settings import Sampler
from tfdp.search.space import Space

# Hyperband takes a trial's bracket from the study's name and the trial's number.
NAME = "search"


@dataclasses.dataclass(frozen=True)
class Choice:
    """What Optuna has chosen for a trial.

    Args:
        number: of the trial, from 0.
        params: the parameters, by name.
        hparams: the recipe's ``HParams`` made of them.
    """

    number: int
    params: dict[str, Any]
    hparams: Any


class Study:
    """A study that is filled from its beginning.

    Args:
        space: the search space.
        objective: what the search looks for.
        storage: an empty storage of Optuna; None keeps the study in memory.
        sampler: how hyperparameters are chosen.
        seed: of the search.
        rungs: where trials are judged; None if nobody asks.
    """

    def __init__(
        self,
        space: Space,
        objective: Objective,
        *,
        storage: optuna.storages.BaseStorage | None = None,
        sampler: Sampler,
        seed: int,
        rungs: Rungs | None = None,
    ) -> None:
        self._space = space
        self._sampler = sampler
        self._seed = seed
        self._trials: dict[int, optuna.Trial] = {}
        self.optuna_study = optuna.create_study(
            study_name=NAME,
            storage=storage,
            direction="maximize" if objective.direction == "max" else "minimize",
            pruner=optuna.pruners.NopPruner() if rungs is None else rungs.pruner(),
        )

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            self.optuna_study.set_metric_names([objective.name])

    def ask(self) -> Choice:
        """Chooses the next trial's hyperparameters.

        Raises:
            BadInput: if the recipe's ``search_space`` fails.
        """
        study = self.optuna_study
        study.sampler = self._sampler_of(len(self._trials))
        trial = study.ask()
        hparams = self._space.draw(trial)
        self._trials[trial.number] = trial
        return Choice(trial.number, dict(trial.params), hparams)

    def note(self, number: int, values: dict[str, Any]) -> None:
        """Adds attributes to a trial, for who looks at the study."""
        for name, value in values.items():
            self._trials[number].set_user_attr(name, value)

    def report(self, number: int, step: int, value: float) -> None:
        """Takes note of a trial's objective at a step."""
        self._trials[number].report(value, step)

    def should_prune(self, number: int) -> bool:
        """Returns whether a trial ends at the rung that was reported last."""
        return bool(self._trials[number].should_prune())

    def tell(self, number: int, state: TrialState, value: float | None = None) -> None:
        """Ends a trial: COMPLETE with its objective, PRUNED or FAIL."""
        self.optuna_study.tell(self._trials[number], value, state=state)

    def _sampler_of(self, number: int) -> BaseSampler:
        seed = int(np.random.SeedSequence([self._seed, number]).generate_state(1)[0])
        return RandomSampler(seed) if self._sampler == "random" else TPESampler(seed=seed)
