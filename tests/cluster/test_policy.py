from __future__ import annotations

from signal import SIGINT, SIGKILL, SIGTERM, Signals

import pytest

from cluster import policy
from cluster.policy import Exit


def ends(*codes: int) -> list[Exit]:
    """Workers' ends, in order of time."""
    return [Exit(f"worker {i}", code) for i, code in enumerate(codes)]


@pytest.mark.parametrize("codes", [(0,), (0, 0, 0)])
def test_a_run_whose_workers_all_finished_has_finished(codes: tuple[int, ...]) -> None:
    for told in (None, SIGINT, SIGTERM):
        assert policy.judge(ends(*codes), told=told, max_restarts=3).code == 0


@pytest.mark.parametrize(
    ("codes", "code"),
    [
        ((1,), 1),
        ((2, 138), 2),
        ((138, 1), 1),
        ((138, 138, 2), 2),
        ((143, 1), 1),
        ((130, 2), 2),
        ((-9, 1), 1),
        ((0, -11, 2), 2),
        ((1, 2), 1),  # the first to go is at fault
        ((2, 1), 2),
        ((138, 127), 127),
        ((255, 3), 3),
    ],
)
def test_a_final_code_wins_and_ends_the_run(codes: tuple[int, ...], code: int) -> None:
    for told in (None, SIGINT, SIGTERM):
        assert policy.judge(ends(*codes), told=told, max_restarts=3).code == code


@pytest.mark.parametrize(
    "codes",
    [(138,), (143,), (130,), (-9,), (-10, 138), (0, 138), (143, 138), (137,), (139,), (255,)],
)
def test_anything_else_starts_anew_up_to_the_limit_and_ends_with_138(
    codes: tuple[int, ...],
) -> None:
    judged = [
        policy.judge(ends(*codes), lasted_s=[5] * (1 + n), max_restarts=2).code for n in range(3)
    ]
    assert judged == [None, None, 138]
    assert policy.judge(ends(*codes)).code == 138, "by default nothing is started anew"


@pytest.mark.parametrize(("told", "code"), [(SIGINT, 130), (SIGTERM, 143)])
@pytest.mark.parametrize("codes", [(143, 138), (130, 130), (-15, -15), (0, 143), (-9, -9), (138,)])
def test_a_launcher_that_was_told_to_stop_does(
    told: Signals, code: int, codes: tuple[int, ...]
) -> None:
    assert policy.judge(ends(*codes), told=told, max_restarts=3).code == code


@pytest.mark.parametrize(
    ("codes", "says"),
    [
        ((0, 1), "worker 1 ended with 1 (failed): the run ends"),
        ((138, 2), "worker 1 ended with 2 (bad input): the run ends"),
        ((-9, 138), "worker 0 was killed by SIGKILL: starting anew, restart 2 of 3"),
        ((-10, 138, -9), "worker 2 was killed by SIGKILL: starting anew, restart 2 of 3"),
        ((138, 143), "worker 1 ended with 143 (told to stop): starting anew, restart 2 of 3"),
        ((138, 138), "worker 0 ended with 138 (a peer was lost or never came): starting anew"),
        ((-35,), "worker 0 was killed by signal 35"),
        ((200,), "worker 0 ended with 200: starting anew"),
    ],
)
def test_the_reason_names_the_cause(codes: tuple[int, ...], says: str) -> None:
    reason = policy.judge(ends(*codes), lasted_s=[5, 500], max_restarts=3).reason
    assert reason.startswith(says)
    assert "\n" not in reason


def test_the_last_reason_names_the_limit() -> None:
    reason = policy.judge(ends(-9), lasted_s=[5] * 4, max_restarts=3).reason
    assert "worker 0 was killed by SIGKILL" in reason
    assert "--max_restarts=3 an hour" in reason


@pytest.mark.parametrize(
    ("lasted_s", "waits_s"),
    [
        ([3], 0),  # the first restart comes at once
        ([500, 3], 0),
        ([3, 500], 0),
        ([3, 3], 1),
        ([3, 3, 3], 2),
        ([3, 500, 3, 3], 1),
        ([3] * 5, 8),
        ([3] * 50, 60),
    ],
)
def test_it_waits_longer_the_more_short_starts_follow_each_other(
    lasted_s: list[float], waits_s: float
) -> None:
    for chance, factor in ((0.0, 0.75), (0.5, 1.0), (1.0, 1.25)):
        verdict = policy.judge(
            ends(-9),
            lasted_s=lasted_s,
            max_restarts=99,
            chance=lambda: chance,  # noqa: B023
        )
        assert verdict.code is None
        assert verdict.wait_s == waits_s * factor
        assert (f" in {verdict.wait_s:.1f} s," in verdict.reason) == (waits_s > 0)


@pytest.mark.parametrize(
    ("lasted_s", "counted"),
    [
        ([], 0),
        ([9], 0),  # the first start is no restart
        ([9, 9], 1),
        ([9, 3600], 0),
        ([9999, 9, 9], 2),
        ([9, 9, 1800, 1795], 2),
        ([9, 9, 1800, 1700], 3),
        ([9, 9, 4000, 9, 9], 2),
    ],
)
def test_an_hour_of_running_forgives_a_restart(lasted_s: list[float], counted: int) -> None:
    assert policy.unforgiven(lasted_s) == counted
    most = counted + 1
    assert policy.judge(ends(-9), lasted_s=lasted_s, max_restarts=counted).code == 138
    verdict = policy.judge(ends(-9), lasted_s=lasted_s, max_restarts=most)
    assert verdict.code is None
    assert f"restart {counted + 1} of {most}" in verdict.reason


def test_others_get_time_to_end_by_themselves_before_they_are_stopped_and_killed() -> None:
    (settle_s, first), (kill_s, second) = policy.ON_FAILURE
    assert 0 < settle_s < kill_s
    assert (first, second) == (SIGTERM, SIGKILL)


@pytest.mark.parametrize("told", [SIGINT, SIGTERM])
def test_a_signal_is_passed_on_at_once_and_the_second_kills(told: Signals) -> None:
    assert policy.on_signals([told], stop_timeout_s=7) == ((0, told), (7, SIGKILL))
    assert policy.on_signals([told, SIGINT], stop_timeout_s=7) == ((0, SIGKILL),)
