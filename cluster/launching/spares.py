"""Spares: processes that are started in advance and replace workers when the cluster restarts.

Importing TensorFlow takes seconds. So for each worker the launcher starts the same command once
more, with ``CLUSTER_SPARE`` in its environment. A spare imports the modules that it will need and
then waits for one line on standard input: the TF_CONFIG of the worker that it becomes. Its earlier
output stays in the pipes and is printed with the worker's. A spare ends when its input ends, and it
dies with the launcher as workers do.
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

from cluster.launching.machines import Worker

VARIABLE: Final = "CLUSTER_SPARE"  # its value is the slot of the worker that the spare is for
START_DELAY_S: Final = 10.0  # earlier, the workers' own start needs the processors


def are_supported_by(command: Sequence[str]) -> bool:
    """Returns whether a command is known to call ``wait_until_needed``."""
    return ("-m", "tfdp.train") in itertools.pairwise(command)


def wait_until_needed(prepare: Callable[[], None]) -> bool:
    """Waits in a spare until it becomes a worker; returns at once in any other process.

    Args:
        prepare: imports modules; called in a spare, before it waits.

    Returns:
        Whether this process is a worker, with TF_CONFIG in its environment. False in a spare that
        is no longer needed.
    """
    if os.environ.pop(VARIABLE, None) is None:
        return True
    prepare()
    tf_config = sys.stdin.readline()
    with Path(os.devnull).open() as null:
        os.dup2(null.fileno(), sys.stdin.fileno())  # the standard input of other workers
    os.environ["TF_CONFIG"] = tf_config.rstrip("\n")
    return bool(tf_config)


class Spares:
    """The launcher's spares.

    Args:
        slots: of the workers that get a spare.
        start_process: starts the spare for a slot.
    """

    def __init__(self, slots: Sequence[int], start_process: Callable[[int], Worker]) -> None:
        self._slots = slots
        self._start_process = start_process
        self._processes: dict[int, Worker] = {}
        self._due_s = math.inf

    @property
    def due_s(self) -> float | None:
        """The monotonic time from which ``start_if_due`` starts spares; None if none are due."""
        return self._due_s if self._due_s < math.inf else None

    def schedule(self) -> None:
        """Makes missing spares due in ``START_DELAY_S``; call it when workers have started."""
        if self._slots:
            self._due_s = time.monotonic() + START_DELAY_S

    def start_if_due(self) -> None:
        """Starts the missing spares if they are due, without those that can't be started."""
        if time.monotonic() < self._due_s:
            return
        self._due_s = math.inf
        for slot in self._slots:
            if slot not in self._processes:
                with contextlib.suppress(OSError):
                    self._processes[slot] = self._start_process(slot)

    def activate(self, slot: int, tf_config: str) -> Worker | None:
        """Makes the spare of a slot a worker, even if it is still importing.

        Returns:
            The worker, or None if there is no running spare for it.
        """
        spare = self._processes.pop(slot, None)
        return spare if spare is not None and spare.write_line(tf_config) else None
