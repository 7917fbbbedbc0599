"""The resume point of a run: the chief finds it in the workdir and sends it to all workers."""

from __future__ import annotations

import dataclasses
import json
import uuid
from pathlib import Path
from typing import Any

from tfdp.checkpoints.reading import read_on_all_workers
from tfdp.checkpoints.store import Checkpoint, CheckpointStore
from tfdp.errors import BadInput
from tfdp.log import say
from tfdp.run import pausing
from tfdp.workers.collectives import Workers


@dataclasses.dataclass(frozen=True)
class ResumePoint:
    """The point from which a run goes on.

    Args:
        step: number of updates done.
        about: the description of the run that its checkpoints contain: its ``run`` (a unique name),
            its ``settings``, its ``restarts`` (how often it went on from a checkpoint), whether a
            callback ``stopped_early``, and the ``best`` evaluation so far.
        summary: the summary of the last time that the run finished; empty if it never did.
        checkpoint: the checkpoint of ``step``; None at the beginning.
        pauses: the steps at which the run has paused so far (``pausing``).
        is_adopted: whether the checkpoint is of another run. Then learning rates are those that
            the recipe sets now, and all else is the checkpoint's.
    """

    step: int
    about: dict[str, Any]
    summary: dict[str, Any]
    checkpoint: Checkpoint | None
    pauses: frozenset[int]
    is_adopted: bool


def find_resume_point(
    workers: Workers,
    store: CheckpointStore | None,
    summary_path: Path,
    settings: dict[str, Any],
    adopt_checkpoints: bool,
) -> ResumePoint:
    """Finds the resume point of a run; a collective.

    Args:
        workers: the workers.
        store: the run's checkpoints, on the chief; None on other workers.
        summary_path: ``WORKDIR/summary.json``, which only the chief reads.
        settings: values that a checkpoint has to have to belong to this run; None matches any.
        adopt_checkpoints: whether to go on from a checkpoint of another run.

    Raises:
        BadInput: on all workers, if the workdir belongs to another run that must not be adopted.
    """

    def find() -> tuple[Checkpoint | None, dict[str, Any]]:
        assert store is not None
        checkpoint = store.latest()
        summary = json.loads(summary_path.read_text()) if summary_path.exists() else {}
        pauses = pausing.steps(summary_path.parent)
        differences = _differences(checkpoint, settings)
        if differences and not adopt_checkpoints:
            raise BadInput(
                f"{summary_path.parent} belongs to another run: {'; '.join(differences)}. Use "
                "another --workdir, or the values that it was started with, or --adopt_checkpoints"
            )
        if checkpoint is None:
            return None, {"about": _about_new_run(settings), "summary": summary}
        if differences:
            say(
                f"going on from another run's checkpoint: {'; '.join(differences)}; learning rates "
                "are those of the recipe"
            )
            return checkpoint, {"about": _about_new_run(settings), "summary": {}, "adopted": True}
        was_finished = summary.get("steps") == checkpoint.step or checkpoint.step in pauses
        restarts = checkpoint.about["restarts"] + (not was_finished)
        about = checkpoint.about | {"restarts": restarts}
        return checkpoint, {"about": about, "summary": summary, "pauses": pauses}

    checkpoint, found = read_on_all_workers(workers, find)
    step = 0 if checkpoint is None else checkpoint.step
    return ResumePoint(
        step,
        found["about"],
        found["summary"],
        checkpoint,
        frozenset(found.get("pauses", ())),
        found.get("adopted", False),
    )


def _about_new_run(settings: dict[str, Any]) -> dict[str, Any]:
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
    saved = checkpoint.about["settings"]
    return [
        f"{name} was {saved.get(name)} and is {value}"
        for name, value in settings.items()
        if value is not None and saved.get(name) != value
    ]
