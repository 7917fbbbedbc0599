"""``WORKDIR/pauses/<step>.json``: the results of a run at a step at which it has paused.

A run that pauses (``--pause_at_step``) goes on later as if it never had: its state is that between
two updates. A search judges trials by these results.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tfdp.files import write_whole


def steps(workdir: Path) -> list[int]:
    """Returns the steps at which the run in a workdir has paused so far."""
    return sorted(int(path.stem) for path in (workdir / "pauses").glob("[0-9]*.json"))


def write(workdir: Path, results: dict[str, Any]) -> None:
    """Writes the results at a pause, whose ``"steps"`` name the file, by one rename."""
    folder = workdir / "pauses"
    folder.mkdir(exist_ok=True)
    write_whole(folder / f"{results['steps']}.json", json.dumps(results, indent=2) + "\n")


def read(workdir: Path, step: int) -> dict[str, Any] | None:
    """Returns the results at a pause; None if the run has not paused at that step."""
    path = workdir / "pauses" / f"{step}.json"
    return json.loads(path.read_text()) if path.exists() else None
