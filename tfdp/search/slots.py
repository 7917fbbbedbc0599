"""Where trials run: each slot runs one trial at a time."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any


@dataclasses.dataclass(frozen=True)
class Slot:
    """A place for one trial.

    Args:
        name: for people: ``core 0``, ``gpu 1``, ``h1``.
        launcher: the words that precede ``python -m tfdp.train …``; it ends with the exit code of
            the run, as ``cluster.policy`` defines it.
        environ: variables on top of this process's.
    """

    name: str
    launcher: tuple[str, ...] = ()
    environ: Mapping[str, Any] = dataclasses.field(default_factory=dict)
