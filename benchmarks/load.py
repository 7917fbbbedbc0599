"""An open-loop load generator: calls are due at fixed times, independent of earlier calls.

The latency of a call is counted from the time when it was *due*. If a server stops for a second,
the latencies of all calls in this second show it. A closed loop would show it in a single call
("coordinated omission").
"""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import Awaitable, Callable, Sequence

from benchmarks.measuring import quantile

_SPIN_S = 0.001  # timers are not more exact: in this time before a call, the loop is polled


@dataclasses.dataclass(frozen=True)
class Outcome:
    """One call.

    Args:
        due_s: when it was due, on ``time.perf_counter``'s clock.
        late_s: how much later it began; this is the generator's own delay.
        latency_s: from the time when it was due to its end.
        error: why it failed; None if it did not.
    """

    due_s: float
    late_s: float
    latency_s: float
    error: str | None


@dataclasses.dataclass(frozen=True)
class Summary:
    """Rates, and quantiles in milliseconds of the calls that succeeded."""

    calls: int
    failed: int
    offered_per_s: float
    answered_per_s: float
    p50_ms: float
    p90_ms: float
    p99_ms: float
    max_ms: float
    late_p99_ms: float


async def offer(
    call: Callable[[], Awaitable[object]], rate_per_s: float, until: Callable[[float], bool]
) -> list[Outcome]:
    """Makes calls at a fixed rate and waits for all of them.

    Args:
        call: makes a call, which fails if an exception is raised.
        rate_per_s: calls due in a second, evenly spaced.
        until: gets the seconds since the beginning before each call; returns whether to stop.
    """
    outcomes: list[Outcome] = []
    under_way: set[asyncio.Task[None]] = set()

    async def one(due_s: float) -> None:
        began_s, error = time.perf_counter(), None
        try:
            await call()
        except Exception as failure:
            error = str(failure) or type(failure).__name__
        outcomes.append(Outcome(due_s, began_s - due_s, time.perf_counter() - due_s, error))

    start_s = time.perf_counter()
    number = 0
    while not until(number / rate_per_s):
        due_s = start_s + number / rate_per_s
        while (left_s := due_s - time.perf_counter()) > 0:
            await asyncio.sleep(max(0.0, left_s - _SPIN_S))
        task = asyncio.create_task(one(due_s))
        under_way.add(task)
        task.add_done_callback(under_way.discard)
        number += 1
        if number % 64 == 0:
            await asyncio.sleep(0)  # lets answers be processed if the generator is late
    while under_way:
        await asyncio.wait(set(under_way))
    return sorted(outcomes, key=lambda outcome: outcome.due_s)


def summarise(outcomes: Sequence[Outcome], rate_per_s: float) -> Summary:
    """Rates and quantiles; failed calls count as calls, and have no latency."""
    good = [outcome for outcome in outcomes if outcome.error is None]
    if not good:
        raise RuntimeError(f"none of {len(outcomes)} calls succeeded: {outcomes[0].error}")
    latencies = [1000 * outcome.latency_s for outcome in good]
    ends = [outcome.due_s + outcome.latency_s for outcome in good]
    lasted_s = max(len(outcomes) / rate_per_s, max(ends) - outcomes[0].due_s)
    return Summary(
        calls=len(outcomes),
        failed=len(outcomes) - len(good),
        offered_per_s=rate_per_s,
        answered_per_s=round(len(good) / lasted_s, 1),
        late_p99_ms=round(quantile([1000 * outcome.late_s for outcome in outcomes], 0.99), 3),
        max_ms=round(max(latencies), 3),
        **{
            f"p{percent}_ms": round(quantile(latencies, percent / 100), 3)
            for percent in (50, 90, 99)
        },
    )
