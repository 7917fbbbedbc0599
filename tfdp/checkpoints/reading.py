"""Reading a checkpoint on the chief, for all workers: its header first, then array by array."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from tfdp.checkpoints import store
from tfdp.checkpoints.state_file import PIECE_BYTES, Place
from tfdp.checkpoints.store import Checkpoint
from tfdp.errors import BadInput
from tfdp.workers.collectives import Workers


def read_on_all_workers(
    workers: Workers, read: Callable[[], tuple[Checkpoint | None, dict[str, Any]]]
) -> tuple[Checkpoint | None, dict[str, Any]]:
    """Calls ``read`` on the chief, and returns its results on all workers; a collective.

    Args:
        workers: the workers.
        read: returns a checkpoint, or None, and further values that JSON can hold.

    Raises:
        BadInput: on all workers, if ``read`` raises it.
    """
    on_chief: list[Checkpoint] = []

    def read_header() -> dict[str, Any]:
        checkpoint, others = read()
        if checkpoint is None:
            return {"others": others}
        on_chief.append(checkpoint)
        return {
            "others": others,
            "step": checkpoint.step,
            "about": checkpoint.about,
            "places": [*checkpoint.places.items()],
        }

    header = workers.run_on_chief(read_header)
    checkpoint = None
    if "step" in header:
        places = {
            name: Place(dtype, tuple(shape), start, stop)
            for name, (dtype, shape, start, stop) in header["places"]
        }
        mapped = on_chief[0].mapped if on_chief else None
        checkpoint = Checkpoint(header["step"], header["about"], places, mapped)
    workers.settle()
    return checkpoint, header["others"]


def arrays(checkpoint: Checkpoint, workers: Workers) -> Iterator[tuple[str, np.ndarray]]:
    """Yields name and value of every array on all workers; a collective of those that read on.

    The chief sends the file in pieces; at most one piece and one array are in memory at a time. On
    the chief, arrays are views of the mapped file.

    Args:
        checkpoint: from ``read_on_all_workers``. Arrays without a place in it are left out.
        workers: the workers.
    """
    mapped, current, piece = checkpoint.mapped, -1, b""
    for name, place in checkpoint.places.items():
        if mapped is None:
            data = np.empty(place.stop - place.start, np.uint8)
        else:
            data = mapped.part(place.start, place.stop)
        of_array = range(place.start // PIECE_BYTES, -(-place.stop // PIECE_BYTES))
        for index in of_array if workers.count > 1 else ():
            first = index * PIECE_BYTES
            if index != current:
                sent = None if mapped is None else mapped.part(first, first + PIECE_BYTES)
                current, piece = index, workers.broadcast(sent)
            if mapped is None:
                start, stop = max(place.start, first), min(place.stop, first + len(piece))
                received = np.frombuffer(piece, np.uint8)[start - first : stop - first]
                data[start - place.start : stop - place.start] = received
        yield name, place.array(data)


def read_of_step(workers: Workers, workdir: Path, step: int | None) -> Checkpoint:
    """Returns the checkpoint of a step, or the newest, on all workers; a collective.

    Raises:
        BadInput: on all workers, if there is no such checkpoint.
    """
    folder = workdir / "checkpoints"

    def read() -> tuple[Checkpoint, dict[str, Any]]:
        if not folder.is_dir():
            raise BadInput(f"there is no {folder}: --workdir has to be that of a run")
        steps = sorted(store.steps(folder))
        if step is None:
            checkpoint = store.newest(folder)
        else:
            checkpoint = store.read(folder, step) if step in steps else None
        if checkpoint is None:
            raise BadInput(
                f"{folder} has no sound checkpoint{'' if step is None else f' of step {step}'}: "
                f"it has those of the steps {steps}"
            )
        return checkpoint, {}

    checkpoint, _ = read_on_all_workers(workers, read)
    assert checkpoint is not None
    return checkpoint
