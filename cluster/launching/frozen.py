"""Finds frozen workers and kills them; ``cluster.policy`` defines when a worker is frozen."""

from __future__ import annotations

import signal
import time
from collections.abc import Sequence

from cluster import policy
from cluster.launching.machines import Worker


class FrozenWorkers:
    """The frozen ones among the workers of one start.

    Attributes:
        due_s: the monotonic time from which ``kill_if_due`` looks at the workers again.
    """

    def __init__(self) -> None:
        self.due_s = time.monotonic()
        self._stillness: dict[Worker, policy.Stillness] = {}
        self._killed_s: dict[Worker, float] = {}

    def kill_if_due(self, running: Sequence[Worker]) -> list[str]:
        """Looks at the running workers if that is due, and kills those that are frozen.

        Returns:
            A line for people about each that was found.
        """
        now_s = time.monotonic()
        if now_s < self.due_s:
            return []
        self.due_s = now_s + policy.SAMPLE_EVERY_S
        lines = []
        for worker in running:
            if worker in self._killed_s or (sample := worker.sample()) is None:
                continue
            stillness = self._stillness.setdefault(worker, policy.Stillness())
            stillness.add(sample, now_s)
            if stillness.loss:
                self._killed_s[worker] = now_s
                worker.signal(signal.SIGKILL)
                lines.append(f"{worker.name} {stillness.loss}: sending SIGKILL to it")
        return lines

    def loss_of(self, worker: Worker) -> str:
        """Returns why a worker was killed here, as in ``policy.Exit``; empty if it was not."""
        return self._stillness[worker].loss if worker in self._killed_s else ""

    def is_given_up(self, worker: Worker) -> bool:
        """Returns whether a worker was killed here, but the kernel did not end it in time."""
        killed_s = self._killed_s.get(worker)
        return killed_s is not None and time.monotonic() > killed_s + policy.GRACE_S
