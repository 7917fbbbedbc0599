"""What people see of a search while it runs: a live table on a terminal, otherwise lines."""

from __future__ import annotations

import dataclasses
import logging
import math
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from rich import box
from rich.cells import cell_len, set_cell_size
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table as Grid
from rich.text import Text

from tfdp.log import say
from tfdp.search.objective import Objective
from tfdp.search.table import Row, Table
from tfdp.search.table_files import parameter_names

REFRESH_S: Final = 0.25  # the table is not drawn more often
BEST_SHOWN: Final = 5  # of many trials
_FRAME_LINES: Final = 8  # around the rows: head, names, three rules, two notes, the cursor's line
_GAP: Final = 3  # characters between two columns
_FAILED: Final = " failed: "


@dataclasses.dataclass(frozen=True)
class RunningTrial:
    """A trial whose run trains at this moment.

    Args:
        slot_name: where.
        target_steps: the run pauses or ends after so many updates.
        since_s: ``time.monotonic()`` when this start of it began.
    """

    slot_name: str
    target_steps: int
    since_s: float


class Screen:
    """Shows a search to people, as a context manager. Whatever fails in it, the search goes on.

    Args:
        objective: by which trials compare.
        trials: how many there will be.
        slots: number of trials at a time.
    """

    def __init__(self, objective: Objective, trials: int, slots: int) -> None:
        self._objective = objective
        self._trials = trials
        self._slots = slots
        self._began_s = time.monotonic()
        self._table: Table | None = None
        self._running: Mapping[int, RunningTrial] = {}
        self._done_before = 0  # trials that were done at the first update
        self._last_event = ""
        self._drawn_s = -math.inf
        self._live = self._open()

    def __enter__(self) -> Screen:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def update(self, table: Table, running: Mapping[int, RunningTrial]) -> None:
        """Shows the state of the search. Call it at every change, and about once a second.

        The first table is where this process begins: what is in it happened before.

        Args:
            table: all trials so far.
            running: the trials whose runs train at this moment, by number.
        """
        if self._table is None:
            self._done_before = len(_done(table))
            if self._done_before:
                self.event(f"{self._done_before} of {self._trials} trials are done: going on")
        try:
            events = list(_events(self._table, table, self._running, running))
        except Exception:  # of a table that is not as expected
            _log_failure()
            events = []
        is_changed = table != self._table or dict(running) != dict(self._running)
        self._table, self._running = table, dict(running)
        for text in events:
            self._note(text)
        self._draw(is_forced=is_changed)

    def event(self, text: str) -> None:
        """Shows what no table shows, such as a trial that was started again after a kill.

        On a terminal, the line stays above the table.
        """
        try:
            say(text)  # above the table, because ``Live`` is in the place of standard error
        except Exception:  # nobody reads, or standard error is closed
            _log_failure()

    def _note(self, text: str) -> None:
        if self._live is None or _FAILED in text:
            self.event(text)
        else:
            logging.getLogger("tfdp").info("%s", text)
            self._last_event = text

    def close(self) -> None:
        """Leaves the last state of the table on the terminal. A second call does nothing."""
        live, self._live = self._live, None
        if live is not None:
            try:
                if self._table is not None:
                    live.update(self._picture(live.console))
                live.stop()
            except Exception:
                _log_failure()

    def _open(self) -> Live | None:
        try:
            # Not what rich takes for a terminal: FORCE_COLOR makes a file one.
            console = Console(file=sys.stderr) if sys.stderr.isatty() else None
            if console is None or console.is_dumb_terminal:
                return None
            # No thread draws: an error of its own would be on the screen, and in no handler.
            live = Live(console=console, auto_refresh=False, redirect_stdout=False)
            live.start()
            return live
        except Exception:
            _log_failure()
            return None

    def _draw(self, *, is_forced: bool) -> None:
        now_s = time.monotonic()
        least_s = REFRESH_S if is_forced else 1.0
        if self._live is None or self._table is None or now_s - self._drawn_s < least_s:
            return
        self._drawn_s = now_s
        try:
            self._live.update(self._picture(self._live.console), refresh=True)
        except Exception:  # the terminal is gone, or too odd for a table: lines remain
            _log_failure()
            self.close()

    def _picture(self, console: Console) -> Group:
        assert self._table is not None
        width, height = console.size
        is_utf8 = console.encoding.lower().startswith("utf")
        head = Text(_cut(self._head(self._table), width), style="bold")
        note = Text(_cut(self._last_event, width), style="dim")
        rows = chosen(self._table, set(self._running), height - _FRAME_LINES)
        grid = self._grid(rows, width, is_utf8)
        if grid is None:
            return Group(head) if height < 3 else Group(head, note)
        hidden = len(self._table) - len(rows)
        more = [Text(_cut(f"{hidden} more trials: see trials.csv", width), style="dim")]
        return Group(head, grid, *(more if hidden else []), note)

    def _grid(self, rows: Sequence[Row], width: int, is_utf8: bool) -> Grid | None:
        """Returns the table; None if the terminal has no place for it."""
        assert self._table is not None
        best = self._table.best
        names = parameter_names(self._table.rows)
        marks = ["*" if best is not None and row.number == best.number else "" for row in rows]
        first = [("trial", [f"{m}{row.number}" for m, row in zip(marks, rows, strict=True)])]
        params = [(name, [_short(row.params.get(name, "")) for row in rows]) for name in names]
        last = [
            ("steps", [self._steps(row, is_utf8) for row in rows]),
            (self._objective.name, [_score(row.objective) for row in rows]),
            ("state", [self._state(row) for row in rows]),
        ]
        left = width - _columns_of([*first, *last])
        if left < 0 or not rows:
            return None
        if _columns_of(params) > left:  # then one for all of them, which is cut
            room = left - _GAP
            texts = [_cut(described(row), room) for row in rows]
            params = [("parameters", texts)] if room >= len("parameters") else []
        grid = Grid(box=box.SIMPLE_HEAD if is_utf8 else box.ASCII2, pad_edge=False)
        columns = [*first, *params, *last]
        for name, _ in columns:
            is_number = name in ("trial", "steps", self._objective.name)
            grid.add_column(Text(name), justify="right" if is_number else "left", no_wrap=True)
        for row, mark, *cells in zip(rows, marks, *(t for _, t in columns), strict=True):
            grid.add_row(*map(Text, cells), style=_style(row, bool(mark)))
        return grid

    def _head(self, table: Table) -> str:
        done = _done(table)
        failures = sum(row.state == "failed" for row in table)
        elapsed_s = time.monotonic() - self._began_s
        parts = [f"{len(done)}/{self._trials} trials"]
        if failures:
            parts.append(f"{failures} failed")
        if (best := table.best) is not None and best.objective is not None:
            parts.append(f"best {self._objective.name} {_score(best.objective)}")
        parts.append(_duration(elapsed_s))
        done_now = len(done) - self._done_before
        if done_now > 0 and len(done) < self._trials:
            left_s = elapsed_s / done_now * (self._trials - len(done))
            parts.append(f"about {_duration(left_s)} left")
        parts.append(f"{len(self._running)} of {self._slots} slots busy")
        return "  ".join(parts)

    def _steps(self, row: Row, is_utf8: bool) -> str:
        running = self._running.get(row.number)
        if running is None:
            return str(row.steps)
        return f"{row.steps}{'→' if is_utf8 else '->'}{running.target_steps}"

    def _state(self, row: Row) -> str:
        running = self._running.get(row.number)
        if running is not None:
            since_s = max(0.0, time.monotonic() - running.since_s)
            return f"{running.slot_name}, {_duration(since_s)}"
        return "waiting" if row.state == "running" else row.state


def chosen(table: Table, running: set[int], places: int) -> list[Row]:
    """Returns the rows to show, by number, if there are places for so many.

    All trials if they fit. Otherwise those that run, the best few, and the newest.
    """
    if places <= 0:
        return []
    if len(table) <= places:
        return list(table.rows)
    rank = table.objective.rank
    complete = [row for row in table if row.state == "complete" and row.objective is not None]
    best = sorted(complete, key=lambda row: (rank(row.objective or 0.0), row.number))
    in_order = [
        *best[:1],
        *(row for row in table if row.number in running),
        *best[1:BEST_SHOWN],
        *reversed(table.rows),
    ]
    numbers = list(dict.fromkeys(row.number for row in in_order))[:places]
    return [row for row in table if row.number in numbers]


def described(row: Row) -> str:
    """Returns a trial's parameters for people: ``learning_rate=0.0123 units=64``."""
    return " ".join(f"{name}={_short(value)}" for name, value in row.params.items())


def _events(
    before: Table | None,
    now: Table,
    running_before: Mapping[int, RunningTrial],
    running: Mapping[int, RunningTrial],
) -> Iterator[str]:
    """Yields what happened between two tables, and then which trials have started."""
    name = now.objective.name
    rows = {row.number: row for row in before} if before is not None else {}
    for row in now:
        old = rows.get(row.number)
        if before is None or row == old:
            continue
        has_new_rung = row.objective is not None and (
            old is None or len(row.rungs) > len(old.rungs)
        )
        judged = f"{name} {_score(row.objective)} at step {row.steps}"
        if row.state == "failed":
            yield f"trial {row.number}{_FAILED}{_on_one_line(row.failure)}"
        elif row.state == "pruned":
            yield f"trial {row.number} is pruned: {judged}"
        elif row.state == "complete":
            is_best = now.best is not None and now.best.number == row.number
            yield f"trial {row.number} is complete: {judged}{', the best so far' * is_best}"
        elif has_new_rung:
            yield f"trial {row.number} may go on: {judged}"
    for number, trial in running.items():
        if number in running_before:
            continue
        place = f"to step {trial.target_steps}, {trial.slot_name}"
        started = next((row for row in now if row.number == number and not row.rungs), None)
        if started is None:
            yield f"trial {number} goes on ({place})"
        else:
            yield f"trial {number} starts ({place}): {described(started)}"


def _done(table: Sequence[Row]) -> list[Row]:
    return [row for row in table if row.state != "running"]


def _columns_of(columns: Sequence[tuple[str, Sequence[str]]]) -> int:
    """Returns how many of the terminal's columns a table's columns take."""
    return sum(max(map(cell_len, [name, *texts])) + _GAP for name, texts in columns)


def _cut(text: str, width: int) -> str:
    return text if cell_len(text) <= width else f"{set_cell_size(text, max(0, width - 2))}.."


def _score(value: float | None) -> str:
    return "" if value is None else f"{value:.5g}"


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else _on_one_line(str(value))


def _on_one_line(text: str) -> str:
    return " ".join(text.split())


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def _style(row: Row, is_best: bool) -> str:
    if is_best:
        return "bold green"
    return {"failed": "red", "pruned": "dim"}.get(row.state, "")


def _log_failure() -> None:
    logging.getLogger("tfdp").info("the screen failed", exc_info=True)
