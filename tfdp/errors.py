"""The errors of tfdp. Every message names the value, the rule, and what to change."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

_SHOWN_CHARACTERS = 100  # of a value of the user's
_REASON_CHARACTERS = 300  # of another error's text


def shortened(value: Any) -> str:
    """Returns a value as Python writes it, for a message; a long one is cut off."""
    text = repr(value[: _SHOWN_CHARACTERS + 1] if isinstance(value, (str, bytes)) else value)
    if len(text) <= _SHOWN_CHARACTERS:
        return text
    length = f" ({len(value)} in all)" if isinstance(value, (str, bytes)) else ""
    return f"{text[: _SHOWN_CHARACTERS - 10]}…{length}"


def reason_of(error: BaseException) -> str:
    """Returns an error's text for a message: in one line, without names of nodes or colors."""
    text = re.sub(r"\x1b\[\d*m|\{\{.*?\}\}", "", str(error))
    text = " ".join(text.split()) or type(error).__name__
    return text if len(text) <= _REASON_CHARACTERS else f"{text[: _REASON_CHARACTERS - 1]}…"


class TrainingError(Exception):
    """The base class of all errors that tfdp raises."""

    def __reduce__(self) -> tuple[Any, ...]:
        # Exception's own would give the message to a constructor that takes other arguments.
        return type(self).__new__, (type(self),), self.__dict__ | {"args": self.args}


class BadInput(TrainingError, ValueError):  # noqa: N818
    """Wrong flags, TF_CONFIG, recipe or arguments; raised before any work starts (exit code 2)."""


class WorkdirInUse(BadInput):
    """Another run owns this workdir."""


class Replaced(TrainingError):  # noqa: N818
    """Another process owns the workdir now; this one has written nothing since (exit code 1)."""


class Superseded(Replaced):
    """As ``Replaced``, in a run that this process may join again (exit code 138)."""


class Finished(TrainingError):  # noqa: N818
    """Other workers have finished the run, which this one came too late for (exit code 0)."""


class Diverged(TrainingError):  # noqa: N818
    """The loss or a weight is NaN or infinite; that state was not saved (exit code 1)."""


class Refused(TrainingError):  # noqa: N818
    """The evaluation does not meet the conditions for publishing (exit code 1)."""


class PeerMissing(TrainingError):  # noqa: N818
    """Another worker did not come in time (exit code 138)."""


class PeerFailed(TrainingError):  # noqa: N818
    """Another worker failed because of its own error, which the message contains (exit code 1)."""


class Stopped(TrainingError):  # noqa: N818
    """A worker got a signal to stop; all workers stopped after the same step.

    Args:
        step: number of updates done.
        by_worker: name of the worker that got the signal.
    """

    def __init__(self, step: int, by_worker: str) -> None:
        super().__init__(f"stopped at step {step}: {by_worker} got a signal to stop")
        self.step = step
        self.by_worker = by_worker


class Paused(TrainingError):  # noqa: N818
    """The run has reached the step at which it pauses (``--pause_at_step``), on all workers.

    Args:
        step: number of updates done.
    """

    def __init__(self, step: int) -> None:
        super().__init__(f"paused at step {step}")
        self.step = step


class Regrouping(TrainingError):  # noqa: N818
    """Workers that were away are back; all workers stopped after the same step, to start with them.

    Args:
        step: number of updates done, and saved.
        newcomers: names of the workers that are back.
    """

    def __init__(self, step: int, newcomers: Sequence[str]) -> None:
        super().__init__(f"step {step} is saved: starting again with {', '.join(newcomers)}")
        self.step = step
