"""The load generator and its arithmetic, against definitions and known delays."""

from __future__ import annotations

import asyncio
import dataclasses
import time

import grpc
import numpy as np
import pytest

from serving.client import errors
from serving.client.command import load
from serving.client.command.load import Outcome

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("count", [1, 2, 7, 50, 99, 100, 101])
def test_a_quantile_is_the_smallest_value_that_enough_do_not_exceed(count: int) -> None:
    values = RNG.permutation(count).tolist()
    for percent in range(101):
        candidates = [v for v in values if 100 * sum(w <= v for w in values) >= percent * count]
        assert load.quantile(values, percent / 100) == min(candidates), percent


def test_a_quantile_of_nothing_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"0\.5 quantile of 0 values"):
        load.quantile([], 0.5)


def test_a_stall_of_the_server_delays_every_call_that_is_due_during_it() -> None:
    """With "coordinated omission" only the first call would have waited."""
    stall_s, rate = 0.3, 100.0

    async def all_calls() -> list[Outcome]:
        stall_ends_s = time.perf_counter() + stall_s

        async def call() -> None:
            await asyncio.sleep(max(0.0, stall_ends_s - time.perf_counter()))

        return await load.offer(call, rate, until=lambda seconds: seconds >= 2 * stall_s)

    outcomes = asyncio.run(all_calls())
    assert len(outcomes) == 60
    dues_s = [outcome.due_s - outcomes[0].due_s for outcome in outcomes]
    assert dues_s == pytest.approx(np.arange(60) / rate, abs=1e-9)
    for due_s, outcome in zip(dues_s, outcomes, strict=True):
        assert outcome.latency_s >= stall_s - due_s - 0.02
        assert outcome.late_s >= 0


def test_a_stall_of_the_generator_counts_as_its_own_delay() -> None:
    async def all_calls() -> list[Outcome]:
        is_first = True

        async def call() -> None:
            nonlocal is_first
            if is_first:
                is_first = False
                time.sleep(0.2)  # blocks the event loop

        return await load.offer(call, 100.0, until=lambda seconds: seconds >= 0.1)

    outcomes = asyncio.run(all_calls())
    assert [outcome.late_s > 0.05 for outcome in outcomes[1:]] == [True] * 9
    assert all(outcome.latency_s >= outcome.late_s for outcome in outcomes)


def test_failed_calls_are_counted_and_have_no_latency() -> None:
    outcomes = [Outcome(i / 10, 0.0, 0.01 * (i + 1)) for i in range(10)]
    outcomes[3] = dataclasses.replace(
        outcomes[3], latency_s=9.0, status="UNAVAILABLE", error="gone"
    )
    summary = load.summarise(outcomes, 10)
    assert (summary.calls, summary.failed) == (10, 1)
    assert summary.statuses == {"OK": 9, "UNAVAILABLE": 1}
    assert summary.max_ms == summary.p99_ms == 100
    assert summary.p50_ms == 60  # of 10, 20, 30, 50, 60, 70, 80, 90, 100
    assert summary.answered_per_s == 9.0


def test_a_summary_of_failures_alone() -> None:
    summary = load.summarise([Outcome(0, 0.002, 0.1, "INTERNAL", "no")] * 5, 10)
    assert (summary.calls, summary.failed, summary.answered_per_s) == (5, 5, 0)
    assert summary.p50_ms is summary.p99_ms is summary.max_ms is None
    assert (summary.statuses, summary.late_p99_ms) == ({"INTERNAL": 5}, 2)
    assert load.summarise([], 10).calls == 0


def test_a_long_constant_latency_does_not_lower_the_rate() -> None:
    assert load.summarise([Outcome(i / 10, 0, 3.0) for i in range(50)], 10).answered_per_s == 10
    # A server that answers 5 in a second: every answer is later than the one before.
    behind = [Outcome(i / 10, 0, 3.0 + i / 10) for i in range(51)]
    assert load.summarise(behind, 10).answered_per_s == pytest.approx(5.1, abs=0.01)


def test_random_calls_that_come_slowly_do_not_lower_the_rate() -> None:
    dues_s = np.cumsum(RNG.exponential(0.12, 50))  # by chance slower than the 0.1 of the rate
    outcomes = [Outcome(due_s, 0, 0.01) for due_s in dues_s]
    assert load.summarise(outcomes, 10).answered_per_s == 10


def test_statuses_are_those_of_grpc_or_the_exceptions_name() -> None:
    failures: list[Exception] = [
        errors.call_failed("t", "m", "Predict", grpc.StatusCode.UNAVAILABLE, "gone"),
        grpc.aio.AioRpcError(grpc.StatusCode.INTERNAL, grpc.aio.Metadata(), grpc.aio.Metadata()),
        KeyError("x"),
    ]
    expected = ["UNAVAILABLE", "INTERNAL", "KeyError"]

    async def call() -> None:
        raise failures.pop(0)

    outcomes = asyncio.run(load.offer(call, 1000, lambda seconds: seconds > 0.0025))
    assert [outcome.status for outcome in outcomes] == expected
    assert all(outcome.error for outcome in outcomes)


def test_random_times_are_a_poisson_process_and_the_same_in_every_run() -> None:
    async def call() -> None:
        pass

    def dues_s() -> np.ndarray:
        outcomes = asyncio.run(load.offer(call, 20_000, lambda s: s >= 0.1, is_random=True))
        return np.array([outcome.due_s - outcomes[0].due_s for outcome in outcomes])

    first, second = dues_s(), dues_s()
    assert np.allclose(first, second, atol=1e-9)
    gaps_s = np.diff(first)
    assert np.mean(gaps_s) == pytest.approx(1 / 20_000, rel=0.1)
    assert np.std(gaps_s) == pytest.approx(np.mean(gaps_s), rel=0.1)  # of an exponential


def test_a_generator_that_waits_can_be_stopped() -> None:
    ends_s = time.monotonic() + 0.05

    async def call() -> None:
        pass

    outcomes = asyncio.run(load.offer(call, 0.001, lambda _: time.monotonic() > ends_s))
    assert len(outcomes) == 1  # the next one would be due after 1,000 s
