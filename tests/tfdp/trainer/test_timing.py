from __future__ import annotations

import dataclasses

import pytest

from tfdp.trainer import timing
from tfdp.trainer.timing import StepTime


def test_a_step_is_split_into_what_makes_it_up() -> None:
    # Worker 1 comes last to the all-reduce, which takes 2 ms once all are there.
    times = timing.split([0.010, 0.010], [0.001, 0.003], [0.006, 0.002])
    expected = [(0.001, 0.003, 0.004, 0.002), (0.003, 0.005, 0.0, 0.002)]
    for time, parts in zip(times, expected, strict=True):
        assert dataclasses.astuple(time) == pytest.approx(parts)
        assert time.step_s == pytest.approx(0.010)
    assert times[1].own_s == pytest.approx(0.008)


def test_alone_nobody_waits_for_peers() -> None:
    (time,) = timing.split([0.010], [0.004], [0.0])
    assert (time.peers_s, time.reduce_s) == (0.0, 0.0)
    assert time.compute_s == pytest.approx(0.006)


@pytest.mark.parametrize(
    ("own_ms", "slowest"),
    [
        ([8.0], None),
        ([8.0, 8.0], None),
        ([8.0, 8.5], None),  # 0.5 of 10.5
        ([8.0, 10.0], 1),  # 2 of 12
        ([9.0, 8.0, 12.0, 8.5], 2),
        ([30.0, 8.0, 8.0], 0),
        ([20.0, 20.0, 8.0, 8.0], 0),  # two are: one of them is named
    ],
)
def test_who_holds_the_others_back_is_named(own_ms: list[float], slowest: int | None) -> None:
    pace = max(own_ms)
    times = [StepTime(0.0, own / 1000, (pace - own) / 1000, 0.002) for own in own_ms]
    assert timing.straggler(times) == slowest
