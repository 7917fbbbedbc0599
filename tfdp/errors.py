"""What can go wrong, for people: every message names the value, the rule and what to change."""

from __future__ import annotations


class TrainingError(Exception):
    """The base of every error that tfdp raises by itself."""


class BadInput(TrainingError, ValueError):  # noqa: N818
    """Wrong flags, TF_CONFIG, recipe or arguments; said before any work starts (exit code 2)."""


class WorkdirInUse(BadInput):
    """Another run owns this workdir."""


class Replaced(TrainingError):  # noqa: N818
    """Another process owns the workdir by now; this one wrote nothing since (exit code 1)."""


class Diverged(TrainingError):  # noqa: N818
    """The loss or a weight is NaN or infinite; nothing of it was saved (exit code 1)."""


class Refused(TrainingError):  # noqa: N818
    """The evaluation is not what was demanded; nothing was published (exit code 1)."""


class PeerMissing(TrainingError):  # noqa: N818
    """Another worker never came (exit code 138)."""


class PeerFailed(TrainingError):  # noqa: N818
    """Another worker failed by its own fault, which the message repeats (exit code 1)."""


class Stopped(TrainingError):  # noqa: N818
    """Somebody told a worker to stop; every worker stopped at one and the same step.

    Args:
        step: updates done when the run stopped.
        by_worker: index of the worker that was told to.
    """

    def __init__(self, step: int, by_worker: int) -> None:
        super().__init__(f"stopped at step {step}, as worker {by_worker} was told to")
        self.step = step
        self.by_worker = by_worker
