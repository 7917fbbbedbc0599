"""When workers are told to stop, by which signals: a plan of ``cluster.policy`` in the making."""

from __future__ import annotations

import signal
import time
from collections.abc import Sequence

from cluster import exit_codes, policy


class Shutdown:
    """When to send which signal to the workers that still run, and why.

    Attributes:
        reason: the last plan's reason, for people; empty before a plan.
        is_exit_counted: whether exits count for the decision; false after workers were signalled
            because another one failed.
    """

    def __init__(self) -> None:
        self.reason = ""
        self.is_exit_counted = True
        self._is_requested = False
        self._signals: list[tuple[float, signal.Signals]] = []  # times and numbers

    @property
    def is_planned(self) -> bool:
        """Whether a plan was set, even if all of its signals have been sent."""
        return bool(self.reason)

    @property
    def due_s(self) -> float | None:
        """The monotonic time of the next signal; None if no signal is left."""
        return self._signals[0][0] if self._signals else None

    def plan_for_signals(self, received: Sequence[signal.Signals], timeout_s: float) -> None:
        """Replaces the plan after the launcher has received another stop signal."""
        self._is_requested = True
        plan = policy.on_stop_signals(received, timeout_s)
        self._set_plan(plan, f"got {received[-1].name}")

    def leave(self, reason: str) -> None:
        """Drops the plan: the workers have been told to stop by somebody else."""
        self._is_requested = True
        self._signals = []
        self.reason = reason

    def plan_for_exit(self, worker_exit: policy.Exit) -> None:
        """Makes a plan after a worker has ended, if it needs one and no plan exists."""
        if worker_exit.code != exit_codes.FINISHED and not self.is_planned:
            self._set_plan(policy.ON_FAILURE, str(worker_exit))

    def pop_due(self) -> signal.Signals | None:
        """Removes and returns the next signal if its time has come."""
        if self.due_s is None or time.monotonic() < self.due_s:
            return None
        self.is_exit_counted &= self._is_requested
        return self._signals.pop(0)[1]

    def _set_plan(self, plan: policy.StopPlan, reason: str) -> None:
        now_s = time.monotonic()
        self._signals = [(now_s + after_s, number) for after_s, number in plan]
        self.reason = reason
