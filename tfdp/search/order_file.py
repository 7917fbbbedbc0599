"""``WORKDIR/order.txt``: the order in which an asynchronous search took note of results.

That order depends on time. So a search that goes on after a kill has to read what it was.
"""

from __future__ import annotations

import os
from pathlib import Path

from tfdp.errors import BadInput, shortened


class OrderFile:
    """The file; one line for each trial that began (``trial``) or result that counted (``3 27``).

    Args:
        path: created if missing; a last line without an end is cut off.

    Attributes:
        before: what the file had: None for a trial that began, or a trial's number and step.

    Raises:
        BadInput: if a line of it is none of ours.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.before: list[tuple[int, int] | None] = []
        whole = b""
        if path.exists():
            data = path.read_bytes()
            whole = data[: data.rfind(b"\n") + 1]
            for line in whole.decode(errors="replace").splitlines():
                number, _, step = line.partition(" ")
                try:
                    self.before.append(None if number == "trial" else (int(number), int(step)))
                except ValueError:
                    raise self.damage(f"{shortened(line)} is no line of it") from None
        self._file = path.open("ab", buffering=0)
        self._file.truncate(len(whole))

    def damage(self, reason: str) -> BadInput:
        """Returns the error that says that the file is not of this search."""
        return BadInput(
            f"{self._path}, the order of the search's results, is damaged ({reason}): restore it, "
            "or use another --workdir"
        )

    def add_trial(self) -> None:
        """Takes note that a trial began."""
        self._add(b"trial\n")

    def add_result(self, number: int, step: int) -> None:
        """Takes note that a trial's result at a step counted."""
        self._add(b"%d %d\n" % (number, step))

    def _add(self, line: bytes) -> None:
        self._file.write(line)
        os.fsync(self._file.fileno())
