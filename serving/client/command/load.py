"""An open-loop load generator: calls are due at given times, independent of earlier calls.

The latency of a call is counted from the time when it was *due*. If a server stops for a second,
the latencies of all calls in this second show it. A closed loop would show it in a single call
("coordinated omission").
"""

from __future__ import annotations

import asyncio
import collections
import dataclasses
import itertools
import random
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Final

SUCCESS: Final = "OK"

_SPIN_S = 0.001  # timers are not more exact: in this time before a call, the loop is polled
_LOOK_S = 0.1  # how often ``until`` is asked between two calls


@dataclasses.dataclass(frozen=True)
class Outcome:
    """One call.

    Args:
        due_s: when it was due, on ``time.perf_counter``'s clock.
        late_s: how much later it began; this is the generator's own delay.
        latency_s: from the time when it was due to its end.
        status: the name of gRPC's status, ``OK`` if it succeeded; of the exception, if it has none.
        error: why it failed; None if it did not.
    """

    due_s: float
    late_s: float
    latency_s: float
    status: str = SUCCESS
    error: str | None = None


@dataclasses.dataclass(frozen=True)
class Summary:
    """Rates, and quantiles in milliseconds of the calls that succeeded; None if none did."""

    calls: int
    failed: int
    statuses: dict[str, int]
    offered_per_s: float
    answered_per_s: float
    p50_ms: float | None
    p90_ms: float | None
    p99_ms: float | None
    max_ms: float | None
    late_p99_ms: float


async def offer(
    call: Callable[[], Awaitable[object]],
    rate_per_s: float,
    until: Callable[[float], bool],
    *,
    is_random: bool = False,
) -> list[Outcome]:
    """Makes calls at a fixed rate and waits for all of them.

    Args:
        call: makes a call, which fails if an exception is raised.
        rate_per_s: calls due in a second.
        until: gets the seconds from the beginning to the next call, and returns whether to stop;
            asked before each call, and several times in a second.
        is_random: whether the times are those of independent callers (a Poisson process, the same
            one in every run); by default they are evenly spaced.
    """
    outcomes: list[Outcome] = []
    under_way: set[asyncio.Task[None]] = set()

    async def one(due_s: float) -> None:
        began_s, status, error = time.perf_counter(), SUCCESS, None
        try:
            await call()
        except Exception as failure:
            status, error = _status_of(failure), str(failure) or type(failure).__name__
        latency_s = time.perf_counter() - due_s
        outcomes.append(Outcome(due_s, began_s - due_s, latency_s, status, error))

    start_s = time.perf_counter()
    for number, after_s in enumerate(_due_times_s(rate_per_s, is_random), 1):
        due_s = start_s + after_s
        is_over = until(after_s)
        while not is_over and (left_s := due_s - time.perf_counter()) > 0:
            await asyncio.sleep(min(max(0.0, left_s - _SPIN_S), _LOOK_S))
            is_over = left_s > _LOOK_S and until(after_s)
        if is_over:
            break
        task = asyncio.create_task(one(due_s))
        under_way.add(task)
        task.add_done_callback(under_way.discard)
        if number % 64 == 0:
            await asyncio.sleep(0)  # lets answers be processed if the generator is late
    while under_way:
        await asyncio.wait(set(under_way))
    return sorted(outcomes, key=lambda outcome: outcome.due_s)


def summarise(outcomes: Sequence[Outcome], rate_per_s: float) -> Summary:
    """Returns rates and quantiles; failed calls count as calls, and have no latency."""
    good = [outcome for outcome in outcomes if outcome.error is None]
    latencies = [1000 * outcome.latency_s for outcome in good]
    # From the first answer on: a constant latency, however long, does not lower the rate. Random
    # calls come in a longer or shorter time than at the exact rate; this is no merit of the server.
    answers_s = _span([outcome.due_s + outcome.latency_s for outcome in good])
    calls_s = _span([outcome.due_s for outcome in outcomes])
    exact_s = (len(outcomes) - 1) / rate_per_s
    lasted_s = max(len(outcomes) / rate_per_s, answers_s * exact_s / calls_s if calls_s else 0.0)

    def quantile_ms(values: Sequence[float], fraction: float) -> float | None:
        return round(quantile(values, fraction), 3) if values else None

    return Summary(
        calls=len(outcomes),
        failed=len(outcomes) - len(good),
        statuses=dict(collections.Counter(outcome.status for outcome in outcomes).most_common()),
        offered_per_s=rate_per_s,
        answered_per_s=float(f"{len(good) / lasted_s:.5g}") if good else 0.0,
        p50_ms=quantile_ms(latencies, 0.5),
        p90_ms=quantile_ms(latencies, 0.9),
        p99_ms=quantile_ms(latencies, 0.99),
        max_ms=quantile_ms(latencies, 1.0),
        late_p99_ms=quantile_ms([1000 * outcome.late_s for outcome in outcomes], 0.99) or 0.0,
    )


def quantile(values: Sequence[float], fraction: float) -> float:
    """Returns the smallest of ``values`` that at least ``fraction`` of them don't exceed.

    No interpolation: the 0.99 quantile of 100 values is the 99th, of 50 the largest.

    Raises:
        ValueError: if ``values`` is empty or ``fraction`` is not between 0 and 1.
    """
    ordered = sorted(values)
    if not ordered or not 0 <= fraction <= 1:
        raise ValueError(f"no {fraction} quantile of {len(ordered)} values")
    # Computed in whole millionths: as a float, 0.07 * 100 is a little more than 7.
    count = -(-round(fraction * 1_000_000) * len(ordered) // 1_000_000)
    return ordered[max(0, count - 1)]


def _span(times_s: Sequence[float]) -> float:
    return max(times_s) - min(times_s) if times_s else 0.0


def _due_times_s(rate_per_s: float, is_random: bool) -> Iterator[float]:
    """Yields the seconds from the beginning to each call, without end."""
    if not is_random:
        yield from (number / rate_per_s for number in itertools.count())
    gaps, after_s = random.Random(0), 0.0
    while True:
        yield after_s
        after_s += gaps.expovariate(rate_per_s)


def _status_of(failure: Exception) -> str:
    code = getattr(failure, "code", None)  # of the client's errors a value, of gRPC's a method
    name = getattr(code() if callable(code) else code, "name", None)
    return name if isinstance(name, str) else type(failure).__name__
