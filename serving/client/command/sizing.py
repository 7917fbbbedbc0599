"""How many replicas a rate needs, from two measurements of one replica; docs/sizing.md explains it.

A replica is a queue with one server, whose capacity is the knee: the highest rate it answers.
Calls arrive at random (a Poisson process) and divide evenly between replicas.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Final

MAX_USE: Final = 0.7  # of a replica's knee; above it, a small error changes the wait a lot
SPARE_REPLICAS: Final = 1  # one may be lost


@dataclasses.dataclass(frozen=True)
class Measured:
    """Two measurements of one replica.

    Args:
        unloaded_p99_ms: the 0.99 quantile of the latency at a low rate.
        knee_per_s: the highest rate that it answers.
    """

    unloaded_p99_ms: float
    knee_per_s: float


@dataclasses.dataclass(frozen=True)
class Sizing:
    """A number of replicas.

    Args:
        replicas: all, with the spare one.
        use: share of each replica's knee while the spare one is lost.
        p99_ms: the predicted 0.99 quantile then.
    """

    replicas: int
    use: float
    p99_ms: float


def predicted_p99_ms(one: Measured, rate_per_s: float, variability: float = 1.0) -> float:
    """Returns the 0.99 quantile of the latency of one replica; infinite from the knee on.

    A call waits with the probability ``use``, and then for an exponential time (Kingman's and
    Allen and Cunneen's approximation; exact for M/M/1). Adding the quantiles of the wait and of
    the unloaded latency overestimates the quantile of their sum a little.

    Args:
        one: the replica.
        rate_per_s: calls that it gets in a second.
        variability: mean of the squared coefficients of variation of the times between calls and
            of the times of service: 1 for M/M/1, 0.5 for M/D/1.
    """
    use = rate_per_s / one.knee_per_s
    if use >= 1:
        return math.inf
    mean_wait_ms = variability * 1000 / (one.knee_per_s - rate_per_s)  # of the calls that wait
    return one.unloaded_p99_ms + mean_wait_ms * math.log(max(1.0, 100 * use))


def replicas_for(one: Measured, rate_per_s: float, p99_ms: float) -> Sizing | None:
    """Returns the replicas that a rate needs; None if p99_ms is not above the unloaded latency.

    Args:
        one: a replica's measurements.
        rate_per_s: the rate of all calls, at its highest.
        p99_ms: the limit of the 0.99 quantile.
    """
    if p99_ms <= one.unloaded_p99_ms:
        return None
    least, most = 0.01, MAX_USE  # calls hardly wait below 0.01: the prediction is unloaded_p99_ms
    if predicted_p99_ms(one, most * one.knee_per_s) > p99_ms:
        for _ in range(50):  # halves the interval that has the answer
            middle = (least + most) / 2
            is_possible = predicted_p99_ms(one, middle * one.knee_per_s) <= p99_ms
            least, most = (middle, most) if is_possible else (least, middle)
        most = least
    busy = math.ceil(round(rate_per_s / (most * one.knee_per_s), 6))
    rate_of_one_per_s = rate_per_s / busy
    return Sizing(
        replicas=busy + SPARE_REPLICAS,
        use=rate_of_one_per_s / one.knee_per_s,
        p99_ms=predicted_p99_ms(one, rate_of_one_per_s),
    )
