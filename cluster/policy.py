"""Decides what happens when workers end: wait, stop the others, start again, or end the run.

This is the one place that decides.

- A run goes on while each worker runs or has ended with 0.
- When a worker ends with anything else, the other workers have ``WAIT_FOR_OTHERS_S`` to end by
  themselves: the first to end is not always at fault, and the one at fault may still be printing.
  Workers that still run are then stopped: SIGTERM, and SIGKILL after ``GRACE_S``. Only exits before
  the SIGTERM count.
- Codes from 1 to 127 (1 failed, 2 bad input) are permanent errors, which would come again at each
  start. The first of them ends the run, with that code.
- Other exits are retryable: 138 (another worker was lost), 143 and 130 (this worker alone got a
  stop signal), death by a signal. All workers start again, up to ``max_restarts`` times. A restart
  counts until the cluster has run for one more hour (``RESTART_COUNTS_S``, without pauses). If none
  is left, the run ends with 138: the caller of the launcher may start it again.
- The restart is immediate, unless the last run and others right before it were short (under
  ``SHORT_RUN_S``). Then it comes after 1 s, 2 s, 4 s and so on, up to ``MAX_PAUSE_S``, each varied
  at random by up to a quarter.
- A worker that does not run at all for ``FROZEN_AFTER_S`` is frozen: stopped by a signal (SIGSTOP),
  or waiting in the kernel (a disk that no longer answers). It gets SIGKILL and counts as lost. If
  the kernel can't end it either, the launcher waits for ``GRACE_S`` only.
- If the launcher itself gets a signal to stop, it sends the signal on to the workers. They have
  ``--stop_timeout_s`` to save and end; a second signal kills them at once. The run ends with 128 +
  the signal, but with 0 if all workers finished, and with the code of a permanent error if any.
- In a job of a cluster manager (``decide_in_job``), restarts take place within the job, as above.
  The job is put back into the queue if the manager told it to stop while it was running (its time
  limit is near), or if nodes of it are dead: then restarts within the job don't help. A job that
  was cancelled or preempted is left to the manager.
"""

from __future__ import annotations

import dataclasses
import itertools
import random
import signal
from collections.abc import Callable, Sequence
from typing import Any, Final

from cluster import exit_codes

WAIT_FOR_OTHERS_S: Final = 3.0
GRACE_S: Final = 2.0  # short: with a worker lost, there is nothing more to save
SHORT_RUN_S: Final = 20.0
MAX_PAUSE_S: Final = 60.0
RESTART_COUNTS_S: Final = 3600.0
SAMPLE_EVERY_S: Final = 1.0
FROZEN_AFTER_S: Final = 20.0  # others that still run notice a frozen worker earlier, and end

# Signals for the workers that still run, each with the seconds from now until it is sent.
StopPlan = tuple[tuple[float, signal.Signals], ...]
ON_FAILURE: Final[StopPlan] = (
    (WAIT_FOR_OTHERS_S, signal.SIGTERM),
    (WAIT_FOR_OTHERS_S + GRACE_S, signal.SIGKILL),
)

_MEANINGS: Final = {
    exit_codes.FAILED: "failed",
    exit_codes.BAD_INPUT: "bad input",
    exit_codes.INTERRUPTED: "interrupted",
    exit_codes.TRY_AGAIN: "a worker was lost, never came or stood still",
    exit_codes.TERMINATED: "stopped by SIGTERM",
}


def on_stop_signals(received: Sequence[signal.Signals], stop_timeout_s: float) -> StopPlan:
    """Returns the plan after the launcher has received stop signals, one or more."""
    if len(received) > 1:
        return ((0.0, signal.SIGKILL),)
    return ((0.0, received[0]), (stop_timeout_s, signal.SIGKILL))


@dataclasses.dataclass(frozen=True)
class Exit:
    """The end of a worker, or why a host can't have workers.

    Args:
        worker: its name, or the host's.
        code: its exit code, or minus the signal that killed it, as in ``subprocess``.
        loss: what is known beyond the code, as the rest of a sentence about the worker; empty if it
            ended by itself or by a signal.
    """

    worker: str
    code: int
    loss: str = ""

    @property
    def is_permanent(self) -> bool:
        """Whether the same error would come again at the next start."""
        return 0 < self.code < 128

    @property
    def is_caused_by_another(self) -> bool:
        """Whether the worker ended because another one was lost, possibly by a signal (SIGUSR1)."""
        return self.code in (exit_codes.TRY_AGAIN, 128 - exit_codes.TRY_AGAIN)

    def __str__(self) -> str:
        if self.loss:
            return f"{self.worker} {self.loss}"
        if self.code < 0:
            return f"{self.worker} was killed by {_signal_name(-self.code)}"
        meaning = _MEANINGS.get(self.code)
        return f"{self.worker} ended with {self.code}" + (f" ({meaning})" if meaning else "")


class CantStart(Exception):  # noqa: N818
    """The workers can't be started.

    Args:
        exits: why not, as if machines were workers that have ended.
    """

    def __init__(self, exits: Sequence[Exit]) -> None:
        super().__init__("; ".join(map(str, exits)))
        self.exits = exits

    def __reduce__(self) -> tuple[Any, ...]:
        # Exception's own would give the message to a constructor that takes other arguments.
        return type(self).__new__, (type(self),), self.__dict__ | {"args": self.args}


@dataclasses.dataclass(frozen=True)
class Sample:
    """What the kernel reports about a process at one moment.

    Args:
        state: its letter in ``/proc/<pid>/stat``.
        cpu_ticks: processor time that all its threads have used so far.
    """

    state: str
    cpu_ticks: int


class Stillness:
    """For how long a worker has not run at all, as far as it was observed.

    Time between two samples that are far apart does not count: the launcher itself may have been
    stopped then, or the machine asleep.
    """

    def __init__(self) -> None:
        self._last: Sample | None = None
        self._last_s = 0.0
        self._still_s = 0.0

    def add(self, sample: Sample, now_s: float) -> None:
        """Adds a sample, taken at the monotonic time ``now_s``."""
        # T is stopped by a signal (not t: by a debugger), D waits for a device.
        if sample.state in ("T", "D") and sample == self._last:
            self._still_s += min(now_s - self._last_s, 2 * SAMPLE_EVERY_S)
        else:
            self._still_s = 0.0
        self._last, self._last_s = sample, now_s

    @property
    def loss(self) -> str:
        """Says that the worker is frozen, as in ``Exit``; empty if it is not."""
        if self._last is None or self._still_s < FROZEN_AFTER_S:
            return ""
        cause = "stopped by a signal" if self._last.state == "T" else "waiting in the kernel"
        return f"was frozen for {self._still_s:.0f} s ({cause})"


@dataclasses.dataclass(frozen=True)
class Decision:
    """What the launcher does after all workers have ended.

    Args:
        exit_code: the launcher's exit code, or None to start the cluster again.
        reason: one line for people.
        pause_s: seconds until the next start.
        should_requeue: whether to put the job back into the cluster manager's queue.
    """

    exit_code: int | None
    reason: str
    pause_s: float = 0.0
    should_requeue: bool = False


def decide(
    exits: Sequence[Exit],
    *,
    stop_signal: signal.Signals | None = None,
    run_times_s: Sequence[float] = (0.0,),
    max_restarts: int = 0,
    draw: Callable[[], float] = random.random,
) -> Decision:
    """Decides what follows after all workers have ended, or could not be started.

    Args:
        exits: in order of time, without those of workers that were stopped because another failed.
            Empty if the launcher was told to stop before it started workers.
        stop_signal: the signal that told the launcher to stop, if any.
        run_times_s: how long the cluster ran after each start so far, the last start included.
        max_restarts: number of restarts per hour of running.
        draw: returns a random number from 0 to 1.
    """
    if exits and all(end.code == exit_codes.FINISHED for end in exits):
        return Decision(exit_codes.FINISHED, "all workers have finished")
    permanent = next((end for end in exits if end.is_permanent), None)
    if permanent is not None:
        return Decision(permanent.code, f"{permanent}: the run ends")
    if stop_signal is not None:
        return stopped_by(stop_signal)
    unfinished = [end for end in exits if end.code != exit_codes.FINISHED]
    cause = next((end for end in unfinished if not end.is_caused_by_another), unfinished[0])
    restarts = counted_restarts(run_times_s)
    if restarts >= max_restarts:
        return Decision(
            exit_codes.TRY_AGAIN,
            f"{cause}: the run ends, with no restart left (--max_restarts={max_restarts} an hour)",
        )
    pause_s = _mean_pause_s(run_times_s) * (0.75 + draw() / 2)
    when = f" in {pause_s:.1f} s" if pause_s else ""
    return Decision(
        None, f"{cause}: starting again{when}, restart {restarts + 1} of {max_restarts}", pause_s
    )


def decide_in_job(
    exits: Sequence[Exit],
    *,
    is_job_running: bool,
    dead_nodes: Sequence[str] = (),
    stop_signal: signal.Signals | None = None,
    run_times_s: Sequence[float] = (0.0,),
    max_restarts: int = 0,
) -> Decision:
    """Decides what follows after all workers have ended, in a job of a cluster manager.

    Args:
        exits: as in ``decide``.
        is_job_running: whether the job is to go on, by the cluster manager; False if it was
            cancelled or preempted.
        dead_nodes: nodes of the job on which nothing can be started any more.
        stop_signal: the signal that told this program, or the workers' nodes, to stop, if any.
        run_times_s: as in ``decide``, within this job.
        max_restarts: as in ``decide``.
    """
    decision = decide(
        exits, stop_signal=stop_signal, run_times_s=run_times_s, max_restarts=max_restarts
    )
    if decision.exit_code is not None and decision.exit_code < 128:
        return decision
    if not is_job_running:
        reason = "the job ends: it was cancelled, preempted, or is over its time limit"
        ended = stopped_by(stop_signal or signal.SIGTERM)
        return dataclasses.replace(ended, reason=reason)
    if stop_signal == signal.SIGTERM:
        return dataclasses.replace(decision, should_requeue=True)
    if dead_nodes and stop_signal is None:
        reason = f"nothing can be started on {', '.join(dead_nodes)} any more"
        return Decision(exit_codes.TRY_AGAIN, reason, should_requeue=True)
    return decision


def stopped_by(stop_signal: signal.Signals) -> Decision:
    """Returns the decision to end the run because the launcher got a signal to stop."""
    return Decision(128 + stop_signal, f"stopped by {_signal_name(stop_signal)}")


def counted_restarts(run_times_s: Sequence[float]) -> int:
    """Returns how many restarts count, given how long the cluster ran after each start so far."""
    run_since_s = itertools.accumulate(reversed(run_times_s[1:]))  # since each restart, last first
    return sum(1 for time_s in run_since_s if time_s < RESTART_COUNTS_S)


def _mean_pause_s(run_times_s: Sequence[float]) -> float:
    """Returns the pause before the next start, before it is varied at random."""
    short_runs = itertools.takewhile(lambda time_s: time_s < SHORT_RUN_S, reversed(run_times_s))
    count = len(list(short_runs))
    return min(2.0 ** (count - 2), MAX_PAUSE_S) if count > 1 else 0.0


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # real-time signals have no name
        return f"signal {number}"
