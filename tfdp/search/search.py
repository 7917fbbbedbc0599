"""The search itself: which trials there are, and in which order their results count.

Real slots differ in speed, may be killed, and may be few or many. If results counted in the order
in which they come, no search could be repeated. So a search is that of so many equally fast
*virtual* slots (``--trials_in_flight``), whose clock counts updates. The first of them in virtual
time whose stretch of updates ends is the one whose result counts next, even if real slots have
ended others before. What is chosen and judged then depends on results alone.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from optuna.trial import TrialState

from tfdp.search.objective import Objective
from tfdp.search.rungs import Rungs
from tfdp.search.study import Choice, Study
from tfdp.search.table import Row, State, Table
from tfdp.search.trial import Result


@dataclasses.dataclass(frozen=True, order=True)
class Stretch:
    """The updates of a trial from one rung to the next.

    Args:
        end: when it ends, by the virtual clock.
        number: of the trial.
        first_step: number of updates at its beginning.
        last_step: number of updates at its end.
    """

    end: int
    number: int
    first_step: int
    last_step: int


class Search:
    """A search from its beginning; the same calls lead to the same search.

    Args:
        study: an empty study.
        rungs: where trials are judged.
        objective: what the search looks for.
        folder_of: returns the folder of a trial by its number, relative to the search's workdir.
        on_choice: called with each new trial's choice.

    Attributes:
        in_flight: the stretches whose results have not counted yet.
        failures_in_row: number of trials that failed since the last one that did not.
        examples: that all results which have counted used.
    """

    def __init__(
        self,
        study: Study,
        rungs: Rungs,
        objective: Objective,
        *,
        folder_of: Callable[[int], str],
        on_choice: Callable[[Choice], None] = lambda choice: None,
    ) -> None:
        self.in_flight: set[Stretch] = set()
        self.failures_in_row = 0
        self.examples = 0
        self.optuna_study = study.optuna_study
        self._study = study
        self._rungs = rungs
        self._objective = objective
        self._folder_of = folder_of
        self._on_choice = on_choice
        self._rows: list[Row] = []
        self._now = 0  # by the virtual clock

    @property
    def table(self) -> Table:
        """The trials so far."""
        return Table(list(self._rows), self._objective)

    def begin_trial(self) -> None:
        """Chooses one more trial, in a virtual slot that is free.

        Raises:
            BadInput: if the recipe's ``search_space`` fails.
        """
        choice = self._study.ask()
        self._on_choice(choice)
        folder = self._folder_of(choice.number)
        self._study.note(choice.number, {"folder": folder})
        self._rows.append(
            Row(
                number=choice.number,
                state="running",
                params=choice.params,
                hparams=dataclasses.asdict(choice.hparams),
                folder=folder,
            )
        )
        self._begin_stretch(choice.number, 0)

    def enter(self, stretch: Stretch, result: Result) -> None:
        """Lets a result count: the trial ends, or goes on to its next rung."""
        self.in_flight.remove(stretch)
        self._now = max(self._now, stretch.end)
        number = stretch.number
        row = self._rows[number]
        self.examples += max(0, (result.examples or 0) - row.examples)
        if result.failure:
            self._end(row, "failed", failure=result.failure)
            return
        value = result.objective
        assert value is not None
        self._study.report(number, result.steps, value)
        row = dataclasses.replace(
            row,
            steps=result.steps,
            examples=result.examples or 0,
            rungs={**row.rungs, result.steps: value},
            objective=value,
            weights_sha256=result.weights_sha256,
        )
        if result.is_end:
            self._end(row, "complete")
        elif self._study.should_prune(number):
            self._end(row, "pruned")
        else:
            self._rows[number] = row
            self._begin_stretch(number, result.steps)

    def _begin_stretch(self, number: int, step: int) -> None:
        last_step = self._rungs.next_after(step)
        self.in_flight.add(Stretch(self._now + last_step - step, number, step, last_step))

    def _end(self, row: Row, state: State, *, failure: str = "") -> None:
        ended = dataclasses.replace(row, state=state, failure=failure)
        self._rows[row.number] = ended
        self.failures_in_row = self.failures_in_row + 1 if failure else 0
        notes = {"weights_sha256": ended.weights_sha256, "examples": ended.examples}
        self._study.note(row.number, notes | ({"failure": failure} if failure else {}))
        if state == "complete":
            self._study.tell(row.number, TrialState.COMPLETE, ended.objective)
        else:
            told = TrialState.PRUNED if state == "pruned" else TrialState.FAIL
            self._study.tell(row.number, told)
