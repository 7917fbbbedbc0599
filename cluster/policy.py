"""What becomes of a cluster when its workers end: the one place that decides.

A run goes on while every worker runs or has ended with 0; a worker that finishes early waits for
nobody. When one ends otherwise, the others get ``SETTLE_S`` to end by themselves, because the first
to go is not always the one at fault: it may have lost a peer that is still printing what went
wrong. Then the rest is stopped (SIGTERM, and SIGKILL after ``GRACE_S``) and all exits before that
are judged together. A code from 1 to 127 (1 failed, 2 bad input) would come again however often the
run is started, so the first of these ends it with that code. Everything else says nothing against
the run: 138 (a peer was lost), 143 and 130 (somebody told this one worker to stop), death by a
signal. The cluster then starts anew: at once, unless the last start was a short one (under
``SHORT_S``) and so were others right before it; then after 1 s, 2 s, 4 s and so on up to
``LONGEST_WAIT_S``, give or take a quarter, so that what is broken for a while is not hammered at.
That happens ``max_restarts`` times an hour: a restart is forgiven when the cluster has run for
``FORGIVEN_S`` since, waiting not counted. Beyond that the run ends with 138: whoever started the
launcher may try again. If the launcher itself is told to stop, it passes the signal on, waits
``--stop_timeout_s`` for the workers to save and leave, and ends with 128 + the signal; a second
signal kills them at once. Even then a code from 1 to 127 counts more, and a run of which every
worker ended with 0 has finished.
"""

from __future__ import annotations

import dataclasses
import itertools
import random
import signal
from collections.abc import Callable, Sequence
from typing import Final

from cluster import exit_codes

SETTLE_S: Final = 3.0  # for the others to end by themselves after the first
GRACE_S: Final = 2.0  # then to leave when told: with a peer gone there is nothing more to save
SHORT_S: Final = 20.0
LONGEST_WAIT_S: Final = 60.0
FORGIVEN_S: Final = 3600.0

# What to do to workers that still run: after so many seconds, send this signal.
Plan = tuple[tuple[float, signal.Signals], ...]
ON_FAILURE: Final[Plan] = ((SETTLE_S, signal.SIGTERM), (SETTLE_S + GRACE_S, signal.SIGKILL))

_MEANINGS: Final = {
    exit_codes.FAILED: "failed",
    exit_codes.BAD_INPUT: "bad input",
    exit_codes.INTERRUPTED: "interrupted",
    exit_codes.TRY_AGAIN: "a peer was lost or never came",
    exit_codes.TERMINATED: "told to stop",
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

    @property
    def is_without_peer(self) -> bool:
        """Whether it ended because another was gone, while TensorFlow started or later."""
        return self.code in (
            exit_codes.TRY_AGAIN,
            128 - exit_codes.TRY_AGAIN,
        )  # as shells count signals

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
        wait_s: seconds until the next start.
    """

    code: int | None
    reason: str
    wait_s: float = 0.0


def judge(
    ends: Sequence[Exit],
    *,
    told: signal.Signals | None = None,
    lasted_s: Sequence[float] = (0.0,),
    max_restarts: int = 0,
    chance: Callable[[], float] = random.random,
) -> Verdict:
    """Decides what becomes of a run whose workers are all gone.

    Args:
        ends: how workers ended, in order of time; without those that were stopped because of
            another's end.
        told: the signal that told the launcher to stop, if one did.
        lasted_s: how long the cluster ran at each start so far, this one last.
        max_restarts: how often an hour it may be started anew.
        chance: a number from 0 to 1, another each time.
    """
    if all(end.code == exit_codes.FINISHED for end in ends):
        return Verdict(exit_codes.FINISHED, "all workers have finished")
    final = next((end for end in ends if end.is_final), None)
    if final is not None:
        return Verdict(final.code, f"{final}: the run ends")
    if told is not None:
        return stopped(told)
    lost = [end for end in ends if end.code != exit_codes.FINISHED]
    # Who says that a peer was lost is not the one to blame: the peer's own end tells more.
    cause = next((end for end in lost if not end.is_without_peer), lost[0])
    restarts = unforgiven(lasted_s)
    if restarts >= max_restarts:
        return Verdict(
            exit_codes.TRY_AGAIN,
            f"{cause}: the run ends, with no restart left (--max_restarts={max_restarts} an hour)",
        )
    wait_s = _wait_s(lasted_s) * (0.75 + chance() / 2)
    when = f" in {wait_s:.1f} s" if wait_s else ""
    return Verdict(
        None, f"{cause}: starting anew{when}, restart {restarts + 1} of {max_restarts}", wait_s
    )


def stopped(told: signal.Signals) -> Verdict:
    """The end of a run because the launcher was told to stop."""
    return Verdict(128 + told, f"stopped by {_signal_name(told)}")


def unforgiven(lasted_s: Sequence[float]) -> int:
    """How many restarts still count, given how long the cluster ran at each start so far."""
    since_s = itertools.accumulate(reversed(lasted_s[1:]))
    return sum(1 for each in since_s if each < FORGIVEN_S)


def _wait_s(lasted_s: Sequence[float]) -> float:
    """How long to wait before the next start, more or less."""
    short = len(list(itertools.takewhile(lambda each: each < SHORT_S, reversed(lasted_s))))
    return min(2.0 ** (short - 2), LONGEST_WAIT_S) if short > 1 else 0.0


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # real-time signals have no name
        return f"signal {number}"
