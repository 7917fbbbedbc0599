"""Reading a checkpoint on the chief, for all workers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tfdp.checkpoints import store
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
        return {"others": others, "step": checkpoint.step, "about": checkpoint.about}

    header = workers.run_on_chief(read_header)
    checkpoint = None
    if "step" in header:
        state = workers.broadcast(on_chief[0].state if on_chief else None)
        checkpoint = Checkpoint(header["step"], header["about"], state)
    workers.settle()
    return checkpoint, header["others"]


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
