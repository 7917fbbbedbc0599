"""The folder of a batch prediction: parts that appear whole, and what they are predictions of.

``part-00000003.npz`` has the rows of a fixed range of batches. ``.identity.json`` is written before
the first part, ``predictions.json`` after the last one.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from tfdp import files
from tfdp.choices import PredictionFormat
from tfdp.errors import BadInput, TrainingError, shortened
from tfdp.trainer.prediction_files import Writer, open_writer
from tfdp.whereabouts import SIGNS
from tfdp.workers.collectives import Workers

_SEEN_WITHIN_S = 30.0  # a file that another machine has written to a shared file system
_IDENTITY = ".identity.json"
_SUMMARY = "predictions.json"
_HIDDEN = re.compile(r"\.part-.*")


class PredictionFolder:
    """A folder for predictions, of one batch prediction at a time.

    Args:
        path: created if missing.
        format: of its parts.
        workers: the workers; making it is a collective.

    Raises:
        BadInput: on all workers, if nothing can be written there, another prediction is going on,
            or there are files of something else.
    """

    def __init__(self, path: Path, format: PredictionFormat, workers: Workers) -> None:
        self.path, self.format = path, format
        self._workers = workers
        self._lock: int | None = None
        workers.run_on_chief(self._open)

    def agree(self, identity: Callable[[], Mapping[str, Any]]) -> dict[str, Any] | None:
        """Checks that parts in the folder are of the same prediction; a collective.

        Args:
            identity: returns values by which predictions differ, as JSON has them; called on the
                chief.

        Returns:
            What ``finish`` has written, or None.

        Raises:
            BadInput: on all workers, if the parts are of something else, or a worker does not see
                the chief's files.
        """
        text: str = self._workers.run_on_chief(lambda: self._write_identity(identity()))
        missing = self._workers.gather_bytes(self._problem(text).encode())
        for worker, problem in enumerate(missing):
            if problem:
                self._workers.settle()
                raise BadInput(f"{self._workers.name(worker)}: {problem.decode()}")
        return self._workers.run_on_chief(self._read_summary)  # type: ignore[no-any-return]

    def parts(self) -> set[int]:
        """Returns the numbers of the parts that are there."""
        if not self.path.is_dir():  # not shared with the chief, which ``agree`` reports
            return set()
        names = (path.name for path in self.path.glob(f"part-*.{self.format}"))
        return {int(name.removeprefix("part-").partition(".")[0]) for name in names}

    @contextlib.contextmanager
    def part(self, number: int) -> Iterator[Writer]:
        """Gives a writer for a part, which appears if the block ends without an error.

        Raises:
            TrainingError: if it can't be written.
        """
        name = f"part-{number:08}.{self.format}"
        # A name of its own: a process that was taken for dead may write the same part.
        hidden = self.path / f".{name}.{uuid.uuid4().hex}"
        try:
            writer = open_writer(hidden, self.format)
            yield writer
            writer.close()
            files.sync_file(hidden)
            hidden.rename(self.path / name)
            files.sync_folder(self.path)
        except OSError as error:
            raise TrainingError(
                f"{self.path / name} can't be written: {error.strerror or error}. The parts before "
                "it stay, and the same command goes on after them"
            ) from error
        finally:
            hidden.unlink(missing_ok=True)

    def finish(self, parts: int, summary: Mapping[str, Any]) -> None:
        """Writes ``predictions.json``, when all parts are there; on the chief.

        Raises:
            TrainingError: if parts are missing, or there are others.
        """
        expected = set(range(parts))
        deadline_s = time.monotonic() + _SEEN_WITHIN_S
        while (there := self.parts()) != expected and time.monotonic() < deadline_s:
            time.sleep(0.5)
            SIGNS.give()
        if there != expected:
            raise TrainingError(
                f"{self.path} has the parts {shortened(sorted(there))}, and the data makes "
                f"{parts}: it has changed since the first parts were written, or somebody else "
                "has changed the folder. Take another folder"
            )
        files.write_whole(self.path / _SUMMARY, json.dumps(summary, indent=2) + "\n")

    def disown(self) -> None:
        """Makes sure that no command goes on with these parts; on the chief."""
        (self.path / _IDENTITY).unlink(missing_ok=True)

    def close(self) -> None:
        """Lets others use the folder."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _open(self) -> None:
        if ":/" in str(self.path):
            raise BadInput(
                f"predictions can't be written in {self.path}: remote paths have no atomic rename; "
                "use a mounted file system"
            )
        try:
            self._lock = files.lock_workdir(self.path, name="the folder of predictions ")
            names = {path.name for path in self.path.iterdir()}
            others = sorted(name for name in names if not name.startswith("."))
            if others and _IDENTITY not in names:
                raise BadInput(
                    f"{self.path} has files that are not of a batch prediction, such as "
                    f"{others[0]}: take another folder"
                )
            for name in filter(_HIDDEN.fullmatch, names):  # of a process that was killed
                (self.path / name).unlink(missing_ok=True)
        except BadInput:
            self.close()
            raise
        except OSError as error:
            self.close()
            raise BadInput(
                f"predictions can't be written in {self.path}: {error.strerror}"
            ) from None

    def _write_identity(self, identity: Mapping[str, Any]) -> str:
        path = self.path / _IDENTITY
        if not path.exists():
            files.write_whole(path, json.dumps(identity, indent=2) + "\n")
        text = path.read_text()
        before = json.loads(text)
        differences = [
            f"{name} was {_shown(name, before)} and is {_shown(name, identity)}"
            for name in {**before, **identity}
            if before.get(name) != identity.get(name)
        ]
        if differences:
            raise BadInput(
                f"{self.path} has other predictions: {'; '.join(differences)}. Take another "
                "folder, or the earlier values to go on there"
            )
        return text

    def _problem(self, identity: str) -> str:
        """Returns why this worker can't write its parts, or ""."""
        path = self.path / _IDENTITY
        deadline_s = time.monotonic() + _SEEN_WITHIN_S
        while time.monotonic() < deadline_s:
            with contextlib.suppress(OSError):
                self.path.stat()
                if path.read_text() == identity:
                    break
            time.sleep(0.2)
        else:
            return (
                f"it does not see what {self._workers.name(0)} writes in {self.path}: give a "
                "folder of a file system that all workers share"
            )
        try:
            probe = self.path / f".part-probe.{uuid.uuid4().hex}"
            probe.touch()
            probe.unlink()
        except OSError as error:
            return f"predictions can't be written in {self.path}: {error.strerror}"
        return ""

    def _read_summary(self) -> dict[str, Any] | None:
        path = self.path / _SUMMARY
        return json.loads(path.read_text()) if path.exists() else None


def _shown(name: str, identity: Mapping[str, Any]) -> str:
    value = identity.get(name)
    return f"{value[:8]}…" if value and name.endswith("sha256") else shortened(value)
