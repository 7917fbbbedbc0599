"""The parts of a step's time on each worker, computed from the times that each one measured."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Sequence

STRAGGLER_SHARE = 0.1  # of a step: a worker that is slower by more is reported


@dataclasses.dataclass(frozen=True)
class StepTime:
    """A step's time on one worker, in seconds: the mean over the steps of a call.

    Args:
        input_s: waiting for the next batch.
        compute_s: computing.
        peers_s: waiting for other workers at the all-reduce.
        reduce_s: the all-reduce itself, after all workers have arrived: the shortest time that any
            worker spends in it.
    """

    input_s: float
    compute_s: float
    peers_s: float
    reduce_s: float

    @property
    def own_s(self) -> float:
        """The time without other workers; the slowest worker determines the pace of all."""
        return self.input_s + self.compute_s

    @property
    def step_s(self) -> float:
        """The whole step."""
        return self.own_s + self.peers_s + self.reduce_s


def split(
    step_s: Sequence[float], input_s: Sequence[float], reduce_s: Sequence[float]
) -> list[StepTime]:
    """Splits each worker's step into its parts.

    Args:
        step_s: the whole step, by worker.
        input_s: its wait for input.
        reduce_s: its time from the worker's last gradient to the sum over all workers. The last
            worker to arrive waits for nobody, so the shortest of these is the all-reduce itself.
    """
    exchange_s = min(reduce_s)
    return [
        StepTime(waiting, max(0.0, step - waiting - reduce), reduce - exchange_s, exchange_s)
        for step, waiting, reduce in zip(step_s, input_s, reduce_s, strict=True)
    ]


def shares(calls: Sequence[Sequence[StepTime]], host_share: float) -> dict[str, float]:
    """Returns the parts of the slowest worker's time, as shares of the whole.

    Args:
        calls: step times of each worker, by call; at least one call.
        host_share: share of the time that is spent between calls.

    Returns:
        Shares of ``input``, ``compute``, ``all-reduce`` (with the wait for other workers) and
        ``host``.
    """
    slowest = max(zip(*calls, strict=True), key=lambda times: sum(time.own_s for time in times))
    spent_s = {
        "input": sum(time.input_s for time in slowest),
        "compute": sum(time.compute_s for time in slowest),
        "all-reduce": sum(time.peers_s + time.reduce_s for time in slowest),
    }
    scale = (1 - host_share) / sum(spent_s.values())
    return {name: scale * seconds for name, seconds in spent_s.items()} | {"host": host_share}


def straggler(times: Sequence[StepTime]) -> int | None:
    """Returns the worker that delays the others by over ``STRAGGLER_SHARE`` of a step, or None."""
    if len(times) < 2:
        return None
    slowest = max(range(len(times)), key=lambda worker: times[worker].own_s)
    others_s = statistics.median(
        time.own_s for worker, time in enumerate(times) if worker != slowest
    )
    lost_s = times[slowest].own_s - others_s
    return slowest if lost_s > STRAGGLER_SHARE * times[slowest].step_s else None
