"""Where the time of a step goes, on each worker: arithmetic on what each of them measured."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Sequence

HOLDS_BACK = 0.1  # of a step: a worker that is slower than the others by more is worth a word


@dataclasses.dataclass(frozen=True)
class StepTime:
    """What a step took on one worker, in seconds, a mean over the steps of a call.

    Args:
        input_s: waiting for the next batch.
        compute_s: computing, by itself.
        peers_s: waiting for other workers to come to the all-reduce.
        reduce_s: in the all-reduce when all had come: what its fastest worker spent there.
    """

    input_s: float
    compute_s: float
    peers_s: float
    reduce_s: float

    @property
    def own_s(self) -> float:
        """What this worker needs by itself; the slowest sets the pace of all."""
        return self.input_s + self.compute_s

    @property
    def step_s(self) -> float:
        """The whole step."""
        return self.own_s + self.peers_s + self.reduce_s


def split(
    step_s: Sequence[float], input_s: Sequence[float], reduce_s: Sequence[float]
) -> list[StepTime]:
    """Splits each worker's step.

    Args:
        step_s: the step, by worker.
        input_s: waiting for input in it.
        reduce_s: from the worker's last gradient to the sum over all workers, in it. The one who
            comes last waits for nobody, so that the shortest of these is the exchange itself.
    """
    exchange_s = min(reduce_s)
    return [
        StepTime(waiting, max(0.0, step - waiting - reduce), reduce - exchange_s, exchange_s)
        for step, waiting, reduce in zip(step_s, input_s, reduce_s, strict=True)
    ]


def shares(calls: Sequence[Sequence[StepTime]], host_share: float) -> dict[str, float]:
    """What the time of the slowest worker goes to, as shares of all.

    Args:
        calls: what a step took on each worker, by call; one or more.
        host_share: of the time that is spent between calls.

    Returns:
        Shares of ``input``, ``compute``, ``all-reduce`` (waiting for peers included) and ``host``.
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
    """The worker that holds the others back by more than ``HOLDS_BACK`` of a step, if one does."""
    if len(times) < 2:
        return None
    slowest = max(range(len(times)), key=lambda worker: times[worker].own_s)
    others_s = statistics.median(
        time.own_s for worker, time in enumerate(times) if worker != slowest
    )
    lost_s = times[slowest].own_s - others_s
    return slowest if lost_s > HOLDS_BACK * times[slowest].step_s else None
