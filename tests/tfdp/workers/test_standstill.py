"""How long a worker may stand still, and what people read about it."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from typing import Any

import pytest

from tfdp.whereabouts import ALL_REDUCE, CALLBACK, INPUT, READING, STEP, Place
from tfdp.workers import standstill
from tfdp.workers.standstill import Clock, Limit, StandstillWatch, describe


@pytest.mark.parametrize(
    ("timeout_s", "longest_s", "place", "has_stepped", "limit_s"),
    [
        (None, 0.0, STEP, True, 600.0),
        (None, 0.0, STEP, False, 1800.0),
        (None, 0.0, ALL_REDUCE, False, 600.0),
        (None, 0.0, CALLBACK, True, 3600.0),  # one of half an hour is nothing special
        (None, 0.0, "publishing", True, 3600.0),
        (None, 0.0, READING, False, 86400.0),  # batches of a whole run, perhaps
        (None, 100.0, STEP, True, 3000.0),
        (None, 100.0, CALLBACK, True, 3600.0),
        (None, 1800.0, STEP, True, 54000.0),
        (60.0, 1800.0, STEP, False, 60.0),
        (60.0, 0.0, READING, False, 60.0),
    ],
)
def test_the_limit_is_far_above_what_happened_before(
    timeout_s: float | None, longest_s: float, place: str, has_stepped: bool, limit_s: float
) -> None:
    assert Limit(timeout_s, longest_s).of(place, has_stepped) == limit_s


def test_a_sign_of_life_starts_the_clock_again() -> None:
    limit = Limit(None)
    clock = Clock(limit)
    for now_s, state in enumerate(["a", "a", "a", "b", "b", "a"]):
        clock.look(float(now_s), state)
    assert (clock.still_s, limit.longest_s) == (0.0, 2.0)
    clock.look(6.5, "a")
    assert (clock.still_s, limit.longest_s) == (1.5, 2.0)


def test_time_in_which_the_process_was_frozen_does_not_count() -> None:
    clock = Clock(Limit(None))
    for now_s in (0.0, 1.0, 10_000.0, 10_001.0):
        clock.look(now_s, "a")
    assert clock.still_s == 4.0


NAMES = [f"worker {index}" for index in range(6)]
HOOK = Place(CALLBACK, "Print.on_epoch_end", "slow at mine.py:3")


@pytest.mark.parametrize(
    ("places", "line"),
    [
        (
            [Place(STEP), HOOK],
            "worker 0 in the all-reduce, "
            "worker 1 in a callback (Print.on_epoch_end, slow at mine.py:3)",
        ),
        (
            [Place(STEP), Place(ALL_REDUCE), Place(INPUT, line="read at mine.py:3")],
            "worker 0 and worker 1 in the all-reduce, worker 2 in input (read at mine.py:3)",
        ),
        (
            [Place(STEP, line="op at mine.py:3"), Place(STEP)],
            "worker 0 in a step (op at mine.py:3), worker 1 in the all-reduce",
        ),
        ([Place(STEP)] * 2, "worker 0 and worker 1 in a step, computing or in the all-reduce"),
        (
            [*[Place(STEP)] * 5, None],
            "worker 0 and 4 others in the all-reduce, worker 5 says nothing: its process is "
            "stopped, or a library holds Python's lock",
        ),
    ],
)
def test_workers_in_a_step_wait_for_one_that_is_elsewhere(
    places: list[Place | None], line: str
) -> None:
    assert describe(NAMES, dict(enumerate(places))) == line


def test_a_process_without_others_needs_no_name() -> None:
    assert describe(("",), {0: HOOK}) == f"in {HOOK}"


def test_a_place_goes_through_a_message() -> None:
    assert Place(**dataclasses.asdict(HOOK)) == HOOK


class OtherWorkers:
    """Stands for FAULTS: two other workers, and what they have left of their limits (s)."""

    names = NAMES[:3]

    def __init__(self, left_s: dict[int, float]) -> None:
        self.left_s = left_s
        self.lines: list[str] = []

    def connections(self) -> dict[int, str]:
        return {}

    def ask(
        self, question: str, timeout_s: float, of: Collection[int] | None = None
    ) -> dict[int, dict[str, Any]]:
        assert of is None or set(of) == self.left_s.keys()
        place = dataclasses.asdict(Place(STEP))
        return {i: {"left_s": s} if of is None else place for i, s in self.left_s.items()}

    def end_run(self, line: str, others_line: str) -> None:
        self.lines.append(line)


@pytest.mark.parametrize(
    ("timeout_s", "still_s", "left_s", "ask_again_s"),
    [
        (None, 4000.0, {1: -1.0, 2: -2.0}, None),
        (None, 4000.0, {1: -1.0, 2: 3.0}, 4003.0),
        (None, 4000.0, {1: -1.0, 2: 900.0}, 4010.0),  # in a callback of an hour
        (None, 4000.0, {1: -1.0}, None),  # silent for longer than in any place
        (None, 3000.0, {1: -1.0}, None),  # this worker is within its own limit
        (60.0, 61.0, {1: -1.0}, None),
    ],
)
def test_the_chief_ends_a_run_only_if_no_worker_is_within_its_limit(
    timeout_s: float | None,
    still_s: float,
    left_s: dict[int, float],
    ask_again_s: float | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    others = OtherWorkers(left_s)
    monkeypatch.setattr(standstill, "FAULTS", others)
    watch = StandstillWatch(timeout_s, 0)
    watch._look()
    watch._clock.still_s = still_s
    if watch._is_time_to_ask():
        watch._ask()
    assert watch._ask_at_s == pytest.approx(ask_again_s or 0.0, abs=1.0)
    ends = ask_again_s is None and still_s != 3000.0
    assert len(others.lines) == ends
    if ends:
        assert others.lines[0].startswith(f"no step for {still_s:.0f} s")
        assert ("says nothing" in others.lines[0]) == (len(left_s) < 2)


def test_a_silent_worker_may_be_in_a_long_callback(monkeypatch: pytest.MonkeyPatch) -> None:
    others = OtherWorkers({1: -1.0})
    monkeypatch.setattr(standstill, "FAULTS", others)
    monkeypatch.setitem(standstill.LEAST_IN_S, "the program", 600.0)
    watch = StandstillWatch(None, 0)
    watch._look()
    watch._clock.still_s = 700.0
    monkeypatch.delitem(standstill.LEAST_IN_S, "the program")
    watch._ask()
    assert not others.lines
