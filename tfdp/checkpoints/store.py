"""Checkpoints on disk: a folder for each step, complete or absent.

``WORKDIR/checkpoints/<step>/`` contains ``state.safetensors`` (arrays) and ``manifest.json`` (the
run that they belong to, and their sha256). It is written under a hidden name and appears by one
rename.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from tfdp.checkpoints import state_file
from tfdp.checkpoints.state_file import Mapped, Place
from tfdp.errors import BadInput, Diverged, TrainingError
from tfdp.files import Claim, sync_folder, write_durably
from tfdp.log import say

FORMAT = 2
_STATE = "state.safetensors"
_BEST = "best"  # a symbolic link to the best checkpoint by a metric
Arrays = Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that was read.

    Args:
        step: number of updates done.
        about: the manifest's description of the run.
        places: of its arrays in the file, by name, in the order of the file.
        mapped: the file; None on workers that get it from the chief.
    """

    step: int
    about: dict[str, Any]
    places: Mapping[str, Place]
    mapped: Mapped | None


def steps(folder: Path) -> list[int]:
    """Returns the steps of all checkpoints in a folder."""
    return [int(path.name) for path in folder.iterdir() if path.name.isdigit()]


def newest(folder: Path) -> Checkpoint | None:
    """Reads the newest intact checkpoint of a folder; returns None if it has none.

    Raises:
        BadInput: if it has another format than this version of tfdp reads.
    """
    found = (read(folder, step) for step in sorted(steps(folder), reverse=True))
    return next((checkpoint for checkpoint in found if checkpoint is not None), None)


def read(folder: Path, step: int) -> Checkpoint | None:
    """Reads the checkpoint of a step; if it is damaged, prints a message and returns None.

    Raises:
        BadInput: if it has another format than this version of tfdp reads.
    """
    path = folder / str(step)
    try:
        manifest = json.loads((path / "manifest.json").read_text())
        mapped = state_file.open_mapped(path / _STATE)
        about, sha256 = manifest.get("about"), manifest.get("sha256")
    except (OSError, ValueError, AttributeError) as error:
        say(f"checkpoint {path} can't be read and is passed over: {error}")
        return None
    if manifest.get("format") != FORMAT:
        raise BadInput(
            f"checkpoint {path} has format {manifest.get('format')} and this version of "
            f"tfdp reads format {FORMAT}: use the version that wrote it, or another workdir"
        )
    if mapped.sha256() != sha256 or not isinstance(about, dict):
        say(f"checkpoint {path} is damaged and is passed over")
        return None
    return Checkpoint(step, about, mapped.places, mapped)


class CheckpointStore:
    """The checkpoints of a run; the chief writes and removes them.

    Args:
        folder: ``WORKDIR/checkpoints``; created if missing.
        keep: number of newest checkpoints to keep.
        claim: claim to the workdir; nothing appears once another process has claimed it.
    """

    def __init__(self, folder: Path, keep: int, claim: Claim) -> None:
        self._folder = folder
        self._keep = keep
        self._claim = claim
        self._writer = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="checkpoints")
        self._writing: concurrent.futures.Future[None] | None = None
        folder.mkdir(parents=True, exist_ok=True)
        # Also the folder that a replaced owner is writing: its rename will fail.
        for unfinished in folder.glob(".*"):
            if unfinished.is_symlink():
                unfinished.unlink(missing_ok=True)
            shutil.rmtree(unfinished, ignore_errors=True)

    def save(
        self, step: int, arrays: Arrays, about: Mapping[str, Any], best: int | None = None
    ) -> None:
        """Starts to write a checkpoint, after the previous one is written.

        The next call of ``save``, ``check`` or ``wait`` raises the error of a failed write.

        Args:
            step: number of updates done.
            arrays: they must not change until ``wait`` has returned.
            about: description of the run for the manifest, as JSON takes it.
            best: step of a checkpoint to keep besides the newest.

        Raises:
            Diverged: if the previous arrays of the model or the optimizer had a NaN or infinity;
                they were not written.
            Replaced: if another process has claimed the workdir.
            TrainingError: if the previous checkpoint could not be written.
        """
        self.wait()
        self._writing = self._writer.submit(self._write, step, arrays, dict(about), best)

    def check(self) -> None:
        """Raises the error of a failed write so far; does not wait for a running one."""
        if self._writing is not None and self._writing.done():
            self.wait()

    def wait(self) -> None:
        """Returns when all checkpoints are on disk; raises the error of a failed write."""
        if self._writing is not None:
            writing, self._writing = self._writing, None
            writing.result()

    def latest(self) -> Checkpoint | None:
        """Reads the newest intact checkpoint; returns None if there is none.

        Raises:
            BadInput: if it has another format than this version of tfdp reads.
        """
        return newest(self._folder)

    def _write(self, step: int, arrays: Arrays, about: dict[str, Any], best: int | None) -> None:
        for name, array in arrays.items():
            # Metrics may hold an infinity: a minimum starts with one.
            if name.startswith(("model/", "optimizer/")) and not _is_finite(array):
                raise Diverged(f"{name} has a NaN or infinity at step {step}: nothing is saved")
        try:
            self._write_folder(step, arrays, about)
            self._claim.check()
            self._clear(step, best)
        except OSError as error:
            self._claim.check()  # another owner may have removed the hidden folder
            raise TrainingError(
                f"checkpoint {self._folder / str(step)} could not be written: {error.strerror}. "
                "Earlier checkpoints are intact: make room or repair the folder, and start the "
                "same command again; it goes on from the newest"
            ) from error

    def _write_folder(self, step: int, arrays: Arrays, about: dict[str, Any]) -> None:
        self._claim.check()
        final, hidden = self._folder / str(step), self._hidden(step)
        try:
            hidden.mkdir()
            sha256 = state_file.write(hidden / _STATE, arrays)
            manifest = {"format": FORMAT, "sha256": sha256, "about": about}
            write_durably(hidden / "manifest.json", json.dumps(manifest, indent=2).encode())
            sync_folder(hidden)
            self._claim.check()
            if final.exists():  # a damaged checkpoint
                self._remove(step)
            hidden.rename(final)
        finally:
            shutil.rmtree(hidden, ignore_errors=True)
        sync_folder(self._folder)

    def _clear(self, step: int, best: int | None) -> None:
        """Links the best checkpoint, and removes all but the best and the newest."""
        link = self._folder / _BEST
        if best is None:
            link.unlink(missing_ok=True)
        elif not link.is_symlink() or link.readlink() != Path(str(best)):
            hidden = self._hidden(best)
            hidden.symlink_to(str(best))
            hidden.rename(link)
        # Checkpoints of later steps are damaged, or the run would have gone on from there.
        for old in sorted(each for each in steps(self._folder) if each <= step)[: -self._keep]:
            if old != best:
                self._remove(old)

    def _remove(self, step: int) -> None:
        removed = self._folder / f".removed-{step}"
        shutil.rmtree(removed, ignore_errors=True)
        (self._folder / str(step)).rename(removed)
        shutil.rmtree(removed)

    def _hidden(self, step: int) -> Path:
        return self._folder / f".{self._claim.name}-{step}"


def _is_finite(array: np.ndarray) -> bool:
    if array.dtype.kind != "f" and array.dtype != ml_dtypes.bfloat16:
        return True
    return all(np.isfinite(piece).all() for piece in state_file.pieces(array.reshape(-1)))
