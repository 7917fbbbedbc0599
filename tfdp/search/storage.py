"""The study's journal, ``WORKDIR/study.log``, which ``optuna-dashboard`` reads while it grows."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

from optuna.storages import JournalStorage
from optuna.storages.journal import BaseJournalBackend

# Whose lines are ours. Optuna's own name of a process is another one after a restart.
_WRITER: Final = "tfdp"


def open_storage(path: Path) -> JournalStorage:
    """Returns an empty storage that writes a journal; only one process may write it.

    A restarted search makes its study anew, with the same operations in the same order. As long as
    they are those in the file, the file stays as it is, and its times of day are taken. So a
    dashboard that is open goes on, and what people wrote there (notes) is kept. From the first
    operation that differs, the file's rest is replaced.

    Args:
        path: the journal; created if missing.
    """
    return JournalStorage(_Journal(path))


class _Journal(BaseJournalBackend):
    """A journal in the format of Optuna's ``JournalFileBackend``, without its lock.

    A process that is killed while it holds that lock blocks all others for half a minute. One
    writer needs none: each of its appends is one write of whole lines.
    """

    def __init__(self, path: Path) -> None:
        self._logs: list[dict[str, Any]] = []  # of this process
        self._file = path.open("ab", buffering=0)
        self._earlier = _whole_lines(path.read_bytes())
        end = self._earlier[-1][1] if self._earlier else 0
        if end < path.stat().st_size:  # a line that a killed process left unfinished
            self._file.truncate(end)
        self._position = 0  # in the file, behind the line of our last operation
        self._earlier.reverse()  # the next one is the last

    def read_logs(self, log_number_from: int) -> Iterable[dict[str, Any]]:
        """Returns the operations of this process."""
        return self._logs[log_number_from:]

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Appends operations, unless they are in the file already."""
        for log in logs:
            line = json.dumps({**log, "worker_id": _WRITER}, separators=(",", ":"))
            written = json.loads(line)
            while self._earlier and self._earlier[-1][0].get("worker_id") != _WRITER:
                self._earlier.pop()  # the dashboard's
            if self._earlier and _without_times(self._earlier[-1][0]) == _without_times(written):
                written, self._position = self._earlier.pop()
            else:
                if self._earlier:
                    self._earlier.clear()
                    self._file.truncate(self._position)
                self._file.write(f"{line}\n".encode())
            self._logs.append({**written, "worker_id": log["worker_id"]})


def _whole_lines(data: bytes) -> list[tuple[dict[str, Any], int]]:
    """Returns the operations in a journal, and where each one's line ends, up to a damaged one."""
    found = []
    end = 0
    for line in data.splitlines(keepends=True):
        end += len(line)
        try:
            operation = json.loads(line)
        except ValueError:
            break
        if not line.endswith(b"\n") or not isinstance(operation, dict):
            break
        found.append((operation, end))
    return found


def _without_times(operation: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in operation.items() if not name.startswith("datetime")}
