"""The table of a search: a row for each trial."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from tfdp.search.objective import Objective

State = Literal["running", "complete", "pruned", "failed"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """A trial, as far as the search has judged it. It depends on neither time nor slots.

    Args:
        number: of the trial, from 0.
        state: "running" also between two rungs.
        params: what Optuna chose, by name.
        hparams: all fields of the recipe's ``HParams``, by name.
        steps: updates that count: of the last rung that was judged, or of the whole run.
        examples: that these updates used.
        rungs: the objective at each rung that was judged, and at the end, by number of steps.
        objective: the last of them; None without one.
        weights_sha256: of the weights after ``steps``; empty without any.
        failure: why it failed; empty if it did not.
        folder: of its run, relative to the search's workdir: ``trials/0007``.
    """

    number: int
    state: State
    params: Mapping[str, Any]
    hparams: Mapping[str, Any]
    steps: int = 0
    examples: int = 0
    rungs: Mapping[int, float] = dataclasses.field(default_factory=dict)
    objective: float | None = None
    weights_sha256: str = ""
    failure: str = ""
    folder: str


@dataclasses.dataclass(frozen=True)
class Table(Sequence[Row]):
    """All trials of a search, by number.

    Args:
        rows: the trials.
        objective: by which they compare.
    """

    rows: Sequence[Row]
    objective: Objective

    @property
    def best(self) -> Row | None:
        """The best complete trial, of equal ones the first; None if none is complete."""
        complete = [row for row in self.rows if row.state == "complete"]
        return min(
            complete,
            key=lambda row: self.objective.rank(_value(row)),
            default=None,
        )

    def __str__(self) -> str:
        """Returns a line for each trial."""
        return "\n".join(
            f"trial {row.number}: {row.state}, {self.objective.name} {row.objective} at step "
            f"{row.steps}, {', '.join(f'{name} {value}' for name, value in row.params.items())}"
            for row in self.rows
        )

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Any) -> Any:
        return self.rows[index]


def _value(row: Row) -> float:
    assert row.objective is not None
    return row.objective
