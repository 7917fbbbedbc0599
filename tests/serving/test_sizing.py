"""Predicted latencies and numbers of replicas, against simulated queues and a table by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from serving.client.command.sizing import MAX_USE, Measured, predicted_p99_ms, replicas_for

RNG = np.random.default_rng(0)
CALLS = 400_000
KNEE_PER_S = 100.0


def simulated_waits_ms(rate_per_s: float, service_s: np.ndarray) -> np.ndarray:
    """Lindley's recursion: waits in a queue with one server and random arrivals."""
    steps_s = service_s[:-1] - RNG.exponential(1 / rate_per_s, len(service_s) - 1)
    walk_s = np.concatenate([[0.0], np.cumsum(steps_s)])
    return 1000 * (walk_s - np.minimum.accumulate(walk_s))


@pytest.mark.parametrize("use", [0.3, 0.5, 0.7])
def test_the_wait_is_that_of_a_simulated_queue(use: float) -> None:
    rate_per_s = use * KNEE_PER_S
    random = RNG.exponential(1 / KNEE_PER_S, CALLS)
    constant = np.full(CALLS, 1 / KNEE_PER_S)
    # The approximation is exact for random service, and on the safe side for constant service.
    for service_s, variability, most in ((random, 1.0, 1.07), (constant, 0.5, 1.35)):
        found_ms = np.quantile(simulated_waits_ms(rate_per_s, service_s), 0.99)
        predicted_ms = predicted_p99_ms(Measured(0, KNEE_PER_S), rate_per_s, variability)
        assert 0.93 < predicted_ms / found_ms < most


def test_there_is_no_latency_from_the_knee_on_and_no_wait_without_load() -> None:
    one = Measured(7.0, 100.0)
    assert predicted_p99_ms(one, 100) == math.inf
    assert predicted_p99_ms(one, 1) == 7.0  # one call in a hundred waits


def test_replicas_for_a_rate() -> None:
    one = Measured(unloaded_p99_ms=10.0, knee_per_s=100.0)
    # ln(70) / 30 s = 142 ms: with a wide limit, the share of the knee decides.
    assert replicas_for(one, 700, 1000).replicas == 11  # type: ignore[union-attr]
    assert replicas_for(one, 701, 1000).replicas == 12  # type: ignore[union-attr]
    # A limit of 58.6 ms leaves 48.6 ms: ln(100 x 0.3) / (1 - 0.3) = 3.40 / 0.7 = 4.86.
    found = replicas_for(one, 1000, 58.6)
    assert found is not None
    assert found.replicas == math.ceil(1000 / 30) + 1
    assert found.p99_ms <= 58.6 < predicted_p99_ms(one, 1000 / (found.replicas - 2))
    assert replicas_for(one, 1, 1000).replicas == 2  # type: ignore[union-attr]
    assert replicas_for(one, 1, 10.0) is None
    assert MAX_USE == 0.7
