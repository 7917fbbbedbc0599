"""Spares: processes that have started already, for when the workers have to be started anew.

Importing TensorFlow takes seconds, so the launcher keeps the same command started once more for
each worker, with ``CLUSTER_SPARE`` in its environment. Such a process imports what it will need and
then waits for a line on its standard input: the TF_CONFIG of the worker that it becomes. What it
has said until then waits, in its pipes, to be read with the worker's words. At the end of its input
it leaves; with the launcher it dies as workers do.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from cluster.process import Worker

VARIABLE: Final = "CLUSTER_SPARE"  # holds the place of the worker that the spare is for
AFTER_S: Final = 10.0  # before that, the workers' own start needs the processors


def can_wait(command: Sequence[str]) -> bool:
    """Whether a command is known to call ``wait``."""
    return ("-m", "tfdp.train") in itertools.pairwise(command)


def wait(prepare: Callable[[], None]) -> bool:
    """In a spare, waits until it becomes a worker; in any other process returns at once.

    Args:
        prepare: called in a spare, before it waits.

    Returns:
        Whether this process is a worker, with TF_CONFIG in its environment; if not, it is not
        needed any more.
    """
    if os.environ.pop(VARIABLE, None) is None:
        return True
    prepare()
    config = sys.stdin.readline()
    with Path(os.devnull).open() as nothing:
        os.dup2(nothing.fileno(), sys.stdin.fileno())  # as other workers have it
    os.environ["TF_CONFIG"] = config.rstrip("\n")
    return bool(config)


class Spares:
    """The launcher's side of it.

    Args:
        places: of the workers that get one.
        start: starts the spare for a place.
    """

    def __init__(self, places: Sequence[int], start: Callable[[int], Worker]) -> None:
        self._places = places
        self._start = start
        self._waiting: dict[int, Worker] = {}
        self._due_s = math.inf

    @property
    def due_s(self) -> float | None:
        """When to call ``start``, by the monotonic clock; None if there is no need to."""
        return self._due_s if self._due_s < math.inf else None

    def workers_started(self) -> None:
        """From now on it takes ``AFTER_S`` until spares are due."""
        if self._places:
            self._due_s = time.monotonic() + AFTER_S

    def start(self) -> None:
        """Starts those that are missing; one that can't be started is done without."""
        self._due_s = math.inf
        for place in self._places:
            if place not in self._waiting:
                with contextlib.suppress(OSError):
                    self._waiting[place] = self._start(place)

    def take(self, place: int, tf_config: str) -> Worker | None:
        """Makes the spare for a place a worker, even if it is not ready yet.

        Returns:
            The worker, or None if there is no spare that lives.
        """
        spare = self._waiting.pop(place, None)
        return spare if spare is not None and spare.tell(tf_config) else None
