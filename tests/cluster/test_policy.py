from __future__ import annotations

from signal import SIGINT, SIGKILL, SIGTERM, Signals

import pytest

from cluster import policy
from cluster.policy import Exit, Sample


def exits(*codes: int) -> list[Exit]:
    """The exits of workers, in order of time."""
    return [Exit(f"worker {i}", code) for i, code in enumerate(codes)]


@pytest.mark.parametrize("codes", [(0,), (0, 0, 0)])
def test_a_run_whose_workers_all_finished_has_finished(codes: tuple[int, ...]) -> None:
    for stop_signal in (None, SIGINT, SIGTERM):
        assert policy.decide(exits(*codes), stop_signal=stop_signal, max_restarts=3).exit_code == 0


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
        ((1, 2), 1),  # the first to end is at fault
        ((2, 1), 2),
        ((138, 127), 127),
        ((255, 3), 3),
    ],
)
def test_a_permanent_error_wins_and_ends_the_run(codes: tuple[int, ...], code: int) -> None:
    for stop_signal in (None, SIGINT, SIGTERM):
        assert (
            policy.decide(exits(*codes), stop_signal=stop_signal, max_restarts=3).exit_code == code
        )


@pytest.mark.parametrize(
    "codes",
    [
        *((138,), (143,), (130,), (-9,), (-10, 138), (0, 138), (143, 138), (137,), (139,), (255,)),
    ],
)
def test_any_other_exit_starts_again_up_to_the_limit_and_ends_with_138(
    codes: tuple[int, ...],
) -> None:
    exit_codes = [
        policy.decide(exits(*codes), run_times_s=[5] * (1 + n), max_restarts=2).exit_code
        for n in range(3)
    ]
    assert exit_codes == [None, None, 138]
    assert policy.decide(exits(*codes)).exit_code == 138, "by default nothing is started again"


@pytest.mark.parametrize(("stop_signal", "code"), [(SIGINT, 130), (SIGTERM, 143)])
@pytest.mark.parametrize("codes", [(143, 138), (130, 130), (-15, -15), (0, 143), (-9, -9), (138,)])
def test_a_launcher_that_got_a_stop_signal_stops(
    stop_signal: Signals, code: int, codes: tuple[int, ...]
) -> None:
    assert policy.decide(exits(*codes), stop_signal=stop_signal, max_restarts=3).exit_code == code


@pytest.mark.parametrize(
    ("codes", "expected"),
    [
        ((0, 1), "worker 1 ended with 1 (failed): the run ends"),
        ((138, 2), "worker 1 ended with 2 (bad input): the run ends"),
        ((-9, 138), "worker 0 was killed by SIGKILL: starting again, restart 2 of 3"),
        ((-10, 138, -9), "worker 2 was killed by SIGKILL: starting again, restart 2 of 3"),
        (
            (138, 143),
            "worker 1 ended with 143 (stopped by SIGTERM): starting again, restart 2 of 3",
        ),
        (
            (138, 138),
            "worker 0 ended with 138 (a worker was lost, never came or stood still): starting "
            "again",
        ),
        ((-35,), "worker 0 was killed by signal 35"),
        ((200,), "worker 0 ended with 200: starting again"),
    ],
)
def test_the_reason_names_the_cause(codes: tuple[int, ...], expected: str) -> None:
    reason = policy.decide(exits(*codes), run_times_s=[5, 500], max_restarts=3).reason
    assert reason.startswith(expected)
    assert "\n" not in reason


def test_a_launcher_that_is_stopped_before_workers_started_has_not_finished() -> None:
    assert policy.decide([], stop_signal=SIGTERM).exit_code == 143


def test_a_lost_worker_is_named_with_its_loss() -> None:
    lost = Exit("worker 1", -SIGKILL, "was frozen for 20 s")
    decision = policy.decide([Exit("worker 0", 138), lost], max_restarts=3)
    assert decision.exit_code is None
    assert decision.reason == "worker 1 was frozen for 20 s: starting again, restart 1 of 3"


def loss(samples: list[tuple[float, str, int]]) -> str:
    """The loss after samples: each a time, a state, and processor time."""
    stillness = policy.Stillness()
    for now_s, state, cpu_ticks in samples:
        stillness.add(Sample(state, cpu_ticks), now_s)
    return stillness.loss


@pytest.mark.parametrize(("state", "cause"), [("T", "by a signal"), ("D", "in the kernel")])
def test_a_worker_is_frozen_once_it_did_not_run_for_so_long(state: str, cause: str) -> None:
    last_s = int(policy.FROZEN_AFTER_S)
    samples = [(float(at_s), state, 7) for at_s in range(last_s + 1)]
    assert loss(samples).startswith("was frozen for 20 s")
    assert cause in loss(samples)
    assert loss(samples[:-1]) == ""
    for at in (0, last_s // 2, last_s):
        for other in ((float(at), "R", 7), (float(at), "S", 7), (float(at), state, 8)):
            assert loss([*samples[:at], other, *samples[at + 1 :]]) == ""


@pytest.mark.parametrize("state", ["R", "S", "t", "Z"])
def test_no_other_state_is_frozen(state: str) -> None:
    assert loss([(float(at_s), state, 7) for at_s in range(100)]) == ""


def test_time_that_was_not_observed_does_not_count() -> None:
    assert loss([(0.0, "T", 7), (1000.0, "T", 7), (2000.0, "T", 7)]) == ""


def test_the_last_reason_names_the_limit() -> None:
    reason = policy.decide(exits(-9), run_times_s=[5] * 4, max_restarts=3).reason
    assert "worker 0 was killed by SIGKILL" in reason
    assert "--max_restarts=3 an hour" in reason


@pytest.mark.parametrize(
    ("run_times_s", "pause_s"),
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
def test_the_pause_grows_with_the_number_of_short_runs_in_a_row(
    run_times_s: list[float], pause_s: float
) -> None:
    for number, factor in ((0.0, 0.75), (0.5, 1.0), (1.0, 1.25)):
        decision = policy.decide(
            exits(-9),
            run_times_s=run_times_s,
            max_restarts=99,
            draw=lambda: number,  # noqa: B023
        )
        assert decision.exit_code is None
        assert decision.pause_s == pause_s * factor
        assert (f" in {decision.pause_s:.1f} s," in decision.reason) == (pause_s > 0)


@pytest.mark.parametrize(
    ("run_times_s", "counted"),
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
def test_a_restart_no_longer_counts_after_an_hour_of_running(
    run_times_s: list[float], counted: int
) -> None:
    assert policy.counted_restarts(run_times_s) == counted
    most = counted + 1
    assert policy.decide(exits(-9), run_times_s=run_times_s, max_restarts=counted).exit_code == 138
    decision = policy.decide(exits(-9), run_times_s=run_times_s, max_restarts=most)
    assert decision.exit_code is None
    assert f"restart {counted + 1} of {most}" in decision.reason


def test_others_get_time_to_end_by_themselves_before_they_are_stopped_and_killed() -> None:
    (settle_s, first), (kill_s, second) = policy.ON_FAILURE
    assert 0 < settle_s < kill_s
    assert (first, second) == (SIGTERM, SIGKILL)


@pytest.mark.parametrize("stop_signal", [SIGINT, SIGTERM])
def test_a_signal_is_passed_on_at_once_and_the_second_kills(stop_signal: Signals) -> None:
    assert policy.on_stop_signals([stop_signal], stop_timeout_s=7) == (
        (0, stop_signal),
        (7, SIGKILL),
    )
    assert policy.on_stop_signals([stop_signal, SIGINT], stop_timeout_s=7) == ((0, SIGKILL),)


@pytest.mark.parametrize(
    ("codes", "stop_signal", "is_job_running", "dead_nodes", "expected"),
    [
        # The last pair: the exit code, and whether the job goes back into the queue.
        ((0, 0), None, True, [], (0, False)),
        ((0, 0), SIGTERM, True, ["n1"], (0, False)),
        ((0, 0), SIGTERM, False, [], (0, False)),
        ((138, 1), None, True, [], (1, False)),
        ((143, 2), SIGTERM, True, [], (2, False)),  # would fail again after the time limit
        ((1, -9), None, True, ["n1"], (1, False)),
        ((143, 138), None, True, [], (None, False)),  # somebody has stopped this worker alone
        ((138, -9), None, True, [], (None, False)),
        ((138, -9), None, True, ["n1"], (138, True)),
        ((138, -9), None, False, ["n1"], (143, False)),  # Slurm has noticed it first
        ((143, 143), SIGTERM, True, [], (143, True)),  # near the time limit
        ((143, 138), SIGTERM, True, [], (143, True)),
        ((143, 143), SIGTERM, False, [], (143, False)),  # cancelled
        ((138, -9), SIGTERM, True, ["n1"], (143, True)),
        ((143, 143), None, False, [], (143, False)),
        ((130, 130), SIGINT, True, [], (130, False)),  # Ctrl-C in salloc
        ((130, 130), SIGINT, False, [], (130, False)),
        ((130, -9), SIGINT, True, ["n1"], (130, False)),
    ],
)
def test_a_job_starts_again_in_its_nodes_or_in_the_queue_or_ends(
    codes: tuple[int, ...],
    stop_signal: Signals | None,
    is_job_running: bool,
    dead_nodes: list[str],
    expected: tuple[int | None, bool],
) -> None:
    decision = policy.decide_in_job(
        exits(*codes),
        stop_signal=stop_signal,
        is_job_running=is_job_running,
        dead_nodes=dead_nodes,
        max_restarts=1,
    )
    assert (decision.exit_code, decision.should_requeue) == expected
    assert "\n" not in decision.reason


def test_a_job_without_a_restart_left_ends_with_138() -> None:
    decision = policy.decide_in_job(exits(138), is_job_running=True, run_times_s=[5, 5])
    assert (decision.exit_code, decision.should_requeue) == (138, False)
