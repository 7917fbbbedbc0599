"""What becomes of a cluster when its workers end: the one place that decides.

A run goes on while every worker runs or has ended with 0; a worker that finishes early waits for
nobody. When one ends otherwise, the others get ``SETTLE_S`` to end by themselves, because the first
to go is not always the one at fault: it may have lost a peer that is still printing what went
wrong. Then the rest is stopped (SIGTERM, and SIGKILL after ``GRACE_S``) and all exits before that
are judged together. A code from 1 to 127 (1 failed, 2 bad input) would come again however often the
run is started, so the first of these ends it with that code. Everything else says nothing against
the run: 138 (a peer was lost), 143 and 130 (somebody told this one worker to stop), death by a
signal. The cluster then starts anew, ``max_restarts`` times, after which the run ends with 138:
whoever started the launcher may try again. If the launcher itself is told to stop, it passes the
signal on, waits ``--stop_timeout_s`` for the workers to save and leave, and ends with 128 + the
signal; a second signal kills them at once. Even then a code from 1 to 127 counts more, and a run
of which every worker ended with 0 has finished.
"""

from __future__ import annotations

import dataclasses
import signal
from collections.abc import Sequence
from typing import Final

from cluster import exits

SETTLE_S: Final = 3.0  # for the others to end by themselves after the first
GRACE_S: Final = 5.0  # then to leave when told: with a peer gone there is nothing more to save

# What to do to workers that still run: after so many seconds, send this signal.
Plan = tuple[tuple[float, signal.Signals], ...]
ON_FAILURE: Final[Plan] = ((SETTLE_S, signal.SIGTERM), (SETTLE_S + GRACE_S, signal.SIGKILL))

_MEANINGS: Final = {
    exits.FAILED: "failed",
    exits.BAD_INPUT: "bad input",
    exits.INTERRUPTED: "interrupted",
    exits.TRY_AGAIN: "a peer was lost or never came",
    exits.TERMINATED: "told to stop",
}


def on_signals(told: Sequence[signal.Signals], stop_timeout_s: float) -> Plan:
    """What to do once the launcher has got the signals ``told``, of which there is at least one."""
    if len(told) > 1:
        return ((0.0, signal.SIGKILL),)
    return ((0.0, told[0]), (stop_timeout_s, signal.SIGKILL))


@dataclasses.dataclass(frozen=True)
class Exit:
    """A worker's end.

    Args:
        worker: its name.
        code: its exit code, or minus the signal that killed it, as in ``subprocess``.
    """

    worker: str
    code: int

    @property
    def is_final(self) -> bool:
        """Whether the same would happen again, so that there is no use in another start."""
        return 0 < self.code < 128

    def __str__(self) -> str:
        if self.code < 0:
            return f"{self.worker} was killed by {_signal_name(-self.code)}"
        meaning = _MEANINGS.get(self.code)
        return f"{self.worker} ended with {self.code}" + (f" ({meaning})" if meaning else "")


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What to do after all workers are gone.

    Args:
        code: the launcher's exit code, or None to start the cluster anew.
        reason: why, in one line for people.
    """

    code: int | None
    reason: str


def judge(
    ends: Sequence[Exit],
    *,
    told: signal.Signals | None = None,
    restarts: int = 0,
    max_restarts: int = 0,
) -> Verdict:
    """Decides what becomes of a run whose workers are all gone.

    Args:
        ends: how workers ended, in order of time; without those that were stopped because of
            another's end.
        told: the signal that told the launcher to stop, if one did.
        restarts: how often the cluster was started anew before.
        max_restarts: how often it may be.
    """
    if all(end.code == exits.FINISHED for end in ends):
        return Verdict(exits.FINISHED, "all workers have finished")
    final = next((end for end in ends if end.is_final), None)
    if final is not None:
        return Verdict(final.code, f"{final}: the run ends")
    if told is not None:
        return Verdict(128 + told, f"stopped by {_signal_name(told)}")
    lost = [end for end in ends if end.code != exits.FINISHED]
    # 138 is what a worker says whose peer went first: the peer's own end tells more.
    cause = next((end for end in lost if end.code != exits.TRY_AGAIN), lost[0])
    if restarts < max_restarts:
        return Verdict(None, f"{cause}: starting anew, restart {restarts + 1} of {max_restarts}")
    return Verdict(
        exits.TRY_AGAIN, f"{cause}: the run ends, with no restart left (--max_restarts={restarts})"
    )


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # real-time signals have no name
        return f"signal {number}"
