"""Checkpoints: a folder for each step, whole or not there.

``WORKDIR/checkpoints/<step>/`` holds ``state.safetensors`` (arrays) and ``manifest.json`` (what
they belong to, and their sha256). It is written under a hidden name and appears by one rename.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import safetensors
import safetensors.numpy

from tfdp.errors import BadInput, Diverged
from tfdp.files import sync_folder, write_durably
from tfdp.log import say

FORMAT = 1
Arrays = Mapping[str, np.ndarray]

_DTYPES = {
    "BOOL": np.bool_,
    "U8": np.uint8,
    "I8": np.int8,
    "U16": np.uint16,
    "I16": np.int16,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "U32": np.uint32,
    "I32": np.int32,
    "F32": np.float32,
    "U64": np.uint64,
    "I64": np.int64,
    "F64": np.float64,
}


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """One checkpoint, as read.

    Args:
        step: updates done.
        about: what the manifest says of the run.
        state: the bytes of ``state.safetensors``.
    """

    step: int
    about: dict[str, Any]
    state: bytes

    def arrays(self) -> dict[str, np.ndarray]:
        """The arrays by name."""
        return {
            name: np.frombuffer(part["data"], _DTYPES[part["dtype"]]).reshape(part["shape"])
            for name, part in safetensors.deserialize(self.state)  # type: ignore[no-untyped-call]
        }


class Checkpoints:
    """The checkpoints of a run, as the chief keeps them.

    Args:
        folder: ``WORKDIR/checkpoints``; made if it isn't there.
        keep: how many of the newest stay.
    """

    def __init__(self, folder: Path, keep: int) -> None:
        self._folder = folder
        self._keep = keep
        self._writer = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="checkpoints")
        self._writing: concurrent.futures.Future[None] | None = None
        folder.mkdir(parents=True, exist_ok=True)
        for unfinished in folder.glob(".*"):
            shutil.rmtree(unfinished, ignore_errors=True)

    def save(self, step: int, arrays: Arrays, about: Mapping[str, Any]) -> None:
        """Starts to write a checkpoint, after the one before is written.

        Args:
            step: updates done.
            arrays: copies, which nobody changes any more.
            about: what the manifest shall say of the run, as JSON takes it.

        Raises:
            Diverged: if an array has a NaN or infinity.
            OSError: if the one before could not be written.
        """
        for name, array in arrays.items():
            is_float = array.dtype.kind == "f" or array.dtype == ml_dtypes.bfloat16
            # A metric may begin at infinity: a minimum does.
            if is_float and not name.startswith("metrics/") and not np.isfinite(array).all():
                raise Diverged(f"{name} has a NaN or infinity at step {step}: nothing is saved")
        self.wait()
        self._writing = self._writer.submit(self._write, step, arrays, dict(about))

    def wait(self) -> None:
        """Returns when what was saved is on disk; raises what went wrong with it."""
        if self._writing is not None:
            writing, self._writing = self._writing, None
            writing.result()

    def latest(self) -> Checkpoint | None:
        """Reads the newest checkpoint that is sound, or gives None if there is none.

        Raises:
            BadInput: if it has another format than this version of tfdp reads.
        """
        for step in sorted(self._steps(), reverse=True):
            folder = self._folder / str(step)
            try:
                manifest = json.loads((folder / "manifest.json").read_text())
                state = (folder / "state.safetensors").read_bytes()
                about, sha256 = manifest.get("about"), manifest.get("sha256")
            except (OSError, ValueError, AttributeError) as error:
                say(f"checkpoint {folder} can't be read, going back to the one before: {error}")
                continue
            if manifest.get("format") != FORMAT:
                raise BadInput(
                    f"checkpoint {folder} has format {manifest.get('format')} and this version of "
                    f"tfdp reads format {FORMAT}: use the version that wrote it, or another workdir"
                )
            if hashlib.sha256(state).hexdigest() != sha256 or not isinstance(about, dict):
                say(f"checkpoint {folder} is damaged, going back to the one before")
                continue
            return Checkpoint(step, about, state)
        return None

    def _steps(self) -> list[int]:
        return [int(path.name) for path in self._folder.iterdir() if path.name.isdigit()]

    def _write(self, step: int, arrays: Arrays, about: dict[str, Any]) -> None:
        final = self._folder / str(step)
        hidden = self._folder / f".{step}"
        shutil.rmtree(hidden, ignore_errors=True)
        hidden.mkdir()
        state = safetensors.numpy.save(dict(arrays))
        manifest = {"format": FORMAT, "sha256": hashlib.sha256(state).hexdigest(), "about": about}
        write_durably(hidden / "state.safetensors", state)
        write_durably(hidden / "manifest.json", json.dumps(manifest, indent=2).encode())
        sync_folder(hidden)
        if final.exists():  # a damaged one, which was passed over
            final.rename(self._folder / f".{step}.damaged")
            shutil.rmtree(self._folder / f".{step}.damaged")
        hidden.rename(final)
        sync_folder(self._folder)
        # Later ones were passed over as damaged, or this would not be the newest.
        for old in sorted(each for each in self._steps() if each <= step)[: -self._keep]:
            shutil.rmtree(self._folder / str(old))
