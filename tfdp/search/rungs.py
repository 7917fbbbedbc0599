"""Rungs: the numbers of updates at which trials are judged, and Optuna's judge."""

from __future__ import annotations

import dataclasses

import optuna

from tfdp.errors import BadInput
from tfdp.search.settings import Prune, TuneSettings

SHORTEST_RUNG = 27  # by default the first rung has this part of all updates


@dataclasses.dataclass(frozen=True)
class Rungs:
    """The rungs of a search.

    Args:
        total_steps: number of updates of a whole trial.
        first_steps: number of updates of the first rung.
        factor: each rung has so many times the updates of the one before.
        prune: who is ended at a rung.
    """

    total_steps: int
    first_steps: int
    factor: int
    prune: Prune

    @classmethod
    def of(cls, settings: TuneSettings, total_steps: int) -> Rungs:
        """Returns the rungs that the flags of a search ask for.

        Raises:
            BadInput: if trials would end before their first rung.
        """
        first_steps = settings.first_rung_steps or -(-total_steps // SHORTEST_RUNG)
        if settings.prune != "none" and first_steps >= total_steps:
            raise BadInput(
                f"--first_rung_steps is {first_steps}, and a trial has {total_steps} steps in all: "
                "give fewer, train longer, or leave out --prune"
            )
        return cls(total_steps, first_steps, settings.rung_factor, settings.prune)

    @property
    def steps(self) -> list[int]:
        """The numbers of updates at which a trial is judged, without those at its end."""
        found, step = [], self.first_steps
        while self.prune != "none" and step < self.total_steps:
            found.append(step)
            step *= self.factor
        return found

    def next_after(self, step: int) -> int:
        """Returns the next rung's updates; after the last rung, those of the whole trial."""
        return next((each for each in self.steps if each > step), self.total_steps)

    def pruner(self) -> optuna.pruners.BasePruner:
        """Returns a new pruner of Optuna."""
        if self.prune == "asha":
            return optuna.pruners.SuccessiveHalvingPruner(
                min_resource=self.first_steps, reduction_factor=self.factor
            )
        if self.prune == "hyperband":
            return optuna.pruners.HyperbandPruner(
                min_resource=self.first_steps,
                max_resource=self.total_steps,
                reduction_factor=self.factor,
            )
        return optuna.pruners.NopPruner()
