"""Where a run stands: what the chief finds in the workdir, told to every worker."""

from __future__ import annotations

import dataclasses
import json
import uuid
from pathlib import Path
from typing import Any

from tfdp.checkpoints import Checkpoint, Checkpoints
from tfdp.errors import BadInput
from tfdp.team import Team


@dataclasses.dataclass(frozen=True)
class Standing:
    """Where a run stands.

    Args:
        step: updates done.
        about: what checkpoints say of the run: its ``run`` (a name that no other has), its
            ``settings``, and its ``restarts``, how often it went on from a checkpoint.
        summary: of the last time that it was finished; empty if it never was.
        checkpoint: the one of ``step``, or None at the beginning.
    """

    step: int
    about: dict[str, Any]
    summary: dict[str, Any]
    checkpoint: Checkpoint | None


def find(
    team: Team, checkpoints: Checkpoints | None, summary_path: Path, settings: dict[str, Any]
) -> Standing:
    """Finds out where the run stands; a collective.

    Args:
        team: the workers.
        checkpoints: on the chief; None on others.
        summary_path: ``WORKDIR/summary.json``, which only the chief reads.
        settings: what a checkpoint has to agree with to be of this run.

    Raises:
        BadInput: on all workers, if the workdir belongs to another run.
    """
    checkpoint: Checkpoint | None = None

    def look() -> dict[str, Any]:
        nonlocal checkpoint
        assert checkpoints is not None
        checkpoint = checkpoints.latest()
        summary = json.loads(summary_path.read_text()) if summary_path.exists() else {}
        about = _about(checkpoint, summary, settings, summary_path.parent)
        step = 0 if checkpoint is None else checkpoint.step
        return {"step": step, "about": about, "summary": summary}

    found = team.by_chief(look)
    if found["step"]:
        state = team.broadcast(None if checkpoint is None else checkpoint.state)
        checkpoint = Checkpoint(found["step"], found["about"], state)
    team.settle()
    return Standing(checkpoint=checkpoint, **found)


def _about(
    checkpoint: Checkpoint | None,
    summary: dict[str, Any],
    settings: dict[str, Any],
    workdir: Path,
) -> dict[str, Any]:
    if checkpoint is None:
        return {"run": uuid.uuid4().hex, "restarts": 0, "settings": settings}
    there = checkpoint.about["settings"]
    differences = [
        f"{name} was {there.get(name)} and is {value}"
        for name, value in settings.items()
        if there.get(name) != value
    ]
    if differences:
        raise BadInput(
            f"{workdir} belongs to another run: {'; '.join(differences)}. "
            "Use another --workdir, or what it was started with"
        )
    was_finished = summary.get("steps") == checkpoint.step
    return checkpoint.about | {"restarts": checkpoint.about["restarts"] + (not was_finished)}
