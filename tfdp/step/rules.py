"""Rules: how the results of a step on several replicas make the result on one."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Literal

import keras

from tfdp.step.per_compile import keep, kept
from tfdp.step.share import Combination

Queue = Literal["rows_first", "rows_last"]
Extreme = Literal["maximum", "minimum"]
Kind = Literal["same", "mean", "sum", "unknown"] | Queue | Extreme


@dataclasses.dataclass(frozen=True)
class State:
    """How the replicas' values of a variable that a step assigns make the whole batch's.

    Args:
        variable: the variable.
        kind: ``"same"``: all replicas have it; ``"mean"``, weighted by examples; ``"sum"``, as of a
            counter; ``"rows_first"`` or ``"rows_last"``: a queue, to which a step adds a row for
            each example; ``"maximum"`` or ``"minimum"``; ``"unknown"``: in no such way.
        keeps: for a sum, the fraction of the earlier value that a step keeps: 1 for a counter, less
            for a moving average of sums.
    """

    variable: keras.Variable
    kind: Kind
    keeps: float = 1.0

    @property
    def is_averaged(self) -> bool:
        """Whether the replicas' values are averaged, for want of a better rule if need be."""
        return self.kind in ("mean", "unknown")


@dataclasses.dataclass(frozen=True)
class Rules:
    """How the results of a step on several replicas combine.

    Without a rehearsal, everything is a mean over examples.

    Args:
        is_rehearsed: whether a rehearsal found the rules.
        weighted_at: ``"tape"``: a replica weights what a tape differentiates; ``"apply"``: it
            weights the gradients that an optimizer gets, because the step uses a tape's gradients
            otherwise too.
        summed_at: ``"apply"``: gradients are summed where an optimizer gets them; ``"tape"``: where
            a tape computes them, because the step does more than adding with them (it clips them,
            for example).
        updates: how gradients combine, for each tape's gradients with respect to variables, or,
            if they are weighted there, each call of an optimizer's ``apply``.
        gathers: whether the step gathers rows of the whole batch.
        terms: for each value of ``add_loss``, and each loss function's number for a whole batch.
        scalars: for each number that a ``keras.metrics.Mean`` is updated with.
        states: for each variable that the step assigns, those of metrics aside.
        logs: for each number that the step returns, by name.
    """

    is_rehearsed: bool = False
    weighted_at: Literal["tape", "apply"] = "tape"
    summed_at: Literal["tape", "apply"] = "apply"
    updates: tuple[Combination, ...] = ()
    gathers: bool = False
    terms: tuple[Combination, ...] = ()
    scalars: tuple[Combination, ...] = ()
    states: tuple[State, ...] = ()
    logs: Mapping[str, Combination] = dataclasses.field(default_factory=dict)

    def described(self) -> str:
        """Returns a text that is equal for equal rules, in any process."""
        states = [(each.variable.path, each.kind, each.keeps) for each in self.states]
        return str(dataclasses.replace(self, states=())) + str(states)

    def update(self, place: int) -> Combination:
        """Returns how the gradients of a call combine."""
        return _at(place, self.updates)

    def term(self, place: int) -> Combination:
        """Returns how the values of a loss term combine."""
        return _at(place, self.terms)

    def scalar(self, place: int) -> Combination:
        """Returns how the numbers of an update of a ``Mean`` combine."""
        return _at(place, self.scalars)


def keep_rules(model: keras.Model, step: str, rules: Rules) -> None:
    """Keeps the rules of a model's step until the model is compiled again.

    Args:
        model: a compiled model.
        step: ``"train_step"`` or ``"test_step"``.
        rules: its rules.
    """
    keep(model, f"rules.{step}", rules)


def kept_rules(model: keras.Model, step: str) -> Rules | None:
    """Returns the rules that ``keep_rules`` kept; None if there are none."""
    return kept(model, f"rules.{step}")  # type: ignore[no-any-return]


def _at(place: int, combinations: tuple[Combination, ...]) -> Combination:
    return combinations[place] if place < len(combinations) else "mean"
