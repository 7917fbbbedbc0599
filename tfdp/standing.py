"""Where a run stands: what the chief finds in the workdir, told to every worker."""

from __future__ import annotations

import dataclasses
import json
import uuid
from pathlib import Path
from typing import Any

from tfdp.checkpoints import Checkpoint, Checkpoints
from tfdp.errors import BadInput
from tfdp.log import say
from tfdp.team import Team


@dataclasses.dataclass(frozen=True)
class Standing:
    """Where a run stands.

    Args:
        step: updates done.
        about: what checkpoints say of the run: its ``run`` (a name that no other has), its
            ``settings``, its ``restarts`` (how often it went on from a checkpoint), whether it
            was ``stopped_early`` by a callback, and the ``best`` evaluation so far.
        summary: of the last time that it was finished; empty if it never was.
        checkpoint: the one of ``step``, or None at the beginning.
    """

    step: int
    about: dict[str, Any]
    summary: dict[str, Any]
    checkpoint: Checkpoint | None


def find(
    team: Team,
    checkpoints: Checkpoints | None,
    summary_path: Path,
    settings: dict[str, Any],
    adopts: bool,
) -> Standing:
    """Finds out where the run stands; a collective.

    Args:
        team: the workers.
        checkpoints: on the chief; None on others.
        summary_path: ``WORKDIR/summary.json``, which only the chief reads.
        settings: what a checkpoint has to agree with to be of this run; None agrees with all.
        adopts: whether the checkpoint of another run will do.

    Raises:
        BadInput: on all workers, if the workdir belongs to another run and must not be adopted.
    """
    checkpoint: Checkpoint | None = None

    def look() -> dict[str, Any]:
        nonlocal checkpoint
        assert checkpoints is not None
        checkpoint = checkpoints.latest()
        summary = json.loads(summary_path.read_text()) if summary_path.exists() else {}
        differences = _differences(checkpoint, settings)
        if differences and not adopts:
            raise BadInput(
                f"{summary_path.parent} belongs to another run: {'; '.join(differences)}. Use "
                "another --workdir, or what it was started with, or --adopt_checkpoints"
            )
        if checkpoint is None:
            return {"step": 0, "about": _new(settings), "summary": summary}
        if differences:
            say(f"going on from another run's checkpoint: {'; '.join(differences)}")
            return {"step": checkpoint.step, "about": _new(settings), "summary": {}}
        was_finished = summary.get("steps") == checkpoint.step
        restarts = checkpoint.about["restarts"] + (not was_finished)
        about = checkpoint.about | {"restarts": restarts}
        return {"step": checkpoint.step, "about": about, "summary": summary}

    found = team.by_chief(look)
    if found["step"]:
        state = team.broadcast(None if checkpoint is None else checkpoint.state)
        checkpoint = Checkpoint(found["step"], found["about"], state)
    team.settle()
    return Standing(checkpoint=checkpoint, **found)


def _new(settings: dict[str, Any]) -> dict[str, Any]:
    return {
        "run": uuid.uuid4().hex,
        "restarts": 0,
        "settings": settings,
        "stopped_early": False,
        "best": None,
    }


def _differences(checkpoint: Checkpoint | None, settings: dict[str, Any]) -> list[str]:
    if checkpoint is None:
        return []
    there = checkpoint.about["settings"]
    return [
        f"{name} was {there.get(name)} and is {value}"
        for name, value in settings.items()
        if value is not None and there.get(name) != value
    ]
