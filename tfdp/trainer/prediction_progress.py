"""The progress of a batch prediction, as people see it."""

from __future__ import annotations

import sys
import time
from typing import Final

from tfdp.log import say
from tfdp.trainer.prediction_folder import PredictionFolder

_LINE_EVERY_S: Final = 5.0
_REWRITE_EVERY_S: Final = 1.0  # on a terminal


class Progress:
    """The chief's line: how many rows of all workers are in the folder.

    Args:
        folder: the folder.
        rows_of_part: rows of each part but the last.
        rows: number of rows in the data; None if that is unknown.
    """

    def __init__(self, folder: PredictionFolder, rows_of_part: int, rows: int | None) -> None:
        self._folder = folder
        self._rows_of_part = rows_of_part
        self._rows = rows
        self._is_terminal = sys.stderr.isatty()
        self._began: tuple[float, int] | None = None  # the first batch takes longer; not counted
        self._last_s = time.monotonic()

    def show(self, rows_in_part: int) -> None:
        """Shows a line if it is time for one; ``rows_in_part`` are not in the folder yet."""
        now_s = time.monotonic()
        every_s = _REWRITE_EVERY_S if self._is_terminal else _LINE_EVERY_S
        if self._began is None:
            self._began = (now_s, self._done(rows_in_part))
        if now_s - self._last_s < every_s:
            return
        self._last_s = now_s
        line = self._line(now_s, self._done(rows_in_part))
        if self._is_terminal:
            print(f"\r\x1b[K{line}", end="", file=sys.stderr, flush=True)
        else:
            say(line)

    def close(self) -> None:
        """Ends the line."""
        if self._is_terminal and self._began is not None:
            print(file=sys.stderr)

    def _done(self, rows_in_part: int) -> int:
        done = len(self._folder.parts()) * self._rows_of_part + rows_in_part
        return done if self._rows is None else min(done, self._rows)

    def _line(self, now_s: float, done: int) -> str:
        assert self._began is not None
        began_s, done_before = self._began
        line = f"{done:,} rows" if self._rows is None else f"{done:,}/{self._rows:,} rows"
        if now_s == began_s or done == done_before:
            return line
        rate = (done - done_before) / (now_s - began_s)
        line += f"  {rate:,.0f} rows/s"
        return line if self._rows is None else f"{line}  {(self._rows - done) / rate:.0f} s left"
