"""Searches whose trials are stand-ins: their order, their ends, kills, limits."""

from __future__ import annotations

import collections
import dataclasses
import json
import shutil
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest

from tests.tfdp.search import stand_in
from tfdp.errors import BadInput, TrainingError
from tfdp.search.child import SearchStopped
from tfdp.search.coordinator import Coordinator
from tfdp.search.objective import Objective
from tfdp.search.rungs import Rungs
from tfdp.search.screen import RunningTrial
from tfdp.search.search import Search
from tfdp.search.settings import TuneSettings
from tfdp.search.slot import Slot
from tfdp.search.study import Choice, Study
from tfdp.search.table import Table
from tfdp.search.trial import TrialFolder

SCORE = Objective("score", "max")
TOTAL = 81


@dataclasses.dataclass(frozen=True)
class HParams:
    x: float
    act: str = ""


class StandInSpace:
    """A space of a number and, if there are any, of acts."""

    def __init__(self, acts: Sequence[str] = ()) -> None:
        self._acts = acts

    def draw(self, trial: optuna.Trial) -> HParams:
        x = trial.suggest_float("x", 0.0, 1.0)
        return HParams(x, trial.suggest_categorical("act", self._acts) if self._acts else "")


class Lines:
    """A screen that keeps its lines."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.most_running = 0

    def update(self, table: Table, running: dict[int, RunningTrial]) -> None:
        self.most_running = max(self.most_running, len(running))

    def event(self, text: str) -> None:
        self.lines.append(text)


class Killed(BaseException):
    """The coordinator is gone."""


def polled(seconds: float) -> Sequence[signal.Signals]:
    time.sleep(min(seconds, 0.01))
    return []


def run(
    workdir: Path,
    *,
    slots: int | Sequence[Slot] = 2,
    acts: Sequence[str] = (),
    screen: Lines | None = None,
    on_change: Callable[[Table], None] = lambda table: None,
    wait: Callable[[float], Sequence[signal.Signals]] = polled,
    **flags: Any,
) -> Search:
    """Runs or goes on with a search; what a table shows of it is returned."""
    options = {"trials": 20, "prune": "asha", "first_rung_steps": 3, "trials_in_flight": 6}
    if flags.get("prune") == "none":
        del options["first_rung_steps"]
    settings = TuneSettings(
        recipe="none.py", workdir=workdir, objective=str(SCORE), **{**options, **flags}
    )
    rungs = Rungs.of(settings, TOTAL)
    choices: dict[int, Choice] = {}

    def prepare(choice: Choice) -> None:
        choices[choice.number] = choice
        TrialFolder(workdir, choice.number).prepare(choice.params)

    def command(number: int, to_step: int | None) -> list[str]:
        folder, params = TrialFolder(workdir, number).path, json.dumps(choices[number].params)
        words = [str(folder), str(TOTAL), str(to_step or 0), params]
        return [sys.executable, "-I", "-S", str(stand_in.__file__), *words]

    study = Study(
        StandInSpace(acts),  # type: ignore[arg-type]
        SCORE,
        sampler=settings.sampler,
        seed=settings.seed,
        rungs=rungs,
    )
    search = Search(
        study,
        rungs,
        SCORE,
        folder_of=lambda number: TrialFolder(workdir, number).name,
        on_choice=prepare,
    )
    Coordinator(
        search,
        settings,
        [Slot(f"slot {i}") for i in range(slots)] if isinstance(slots, int) else slots,
        command=command,
        total_steps=TOTAL,
        screen=screen or Lines(),
        on_change=on_change,
        wait=wait,
    ).run()
    return search


def starts(workdir: Path) -> dict[int, int]:
    """How often each trial was started."""
    return {
        int(path.parent.name): len(path.read_text()) for path in workdir.glob("trials/*/starts")
    }


@pytest.mark.parametrize("prune", ["none", "asha", "hyperband"])
def test_a_search_in_one_virtual_slot_is_one_of_optuna_itself(prune: str, tmp_path: Path) -> None:
    def sampler(number: int) -> optuna.samplers.TPESampler:
        seed = int(np.random.SeedSequence([7, number]).generate_state(1)[0])
        return optuna.samplers.TPESampler(seed=seed)

    def objective(trial: optuna.Trial) -> float:
        x = trial.suggest_float("x", 0.0, 1.0)
        for steps in (3, 9, 27) if prune != "none" else ():
            trial.report(stand_in.value({"x": x}, steps), steps)
            if trial.should_prune():
                raise optuna.TrialPruned
        return stand_in.value({"x": x}, TOTAL)

    pruners = {
        "none": optuna.pruners.NopPruner(),
        "asha": optuna.pruners.SuccessiveHalvingPruner(min_resource=3, reduction_factor=3),
        "hyperband": optuna.pruners.HyperbandPruner(3, TOTAL, 3),
    }
    study = optuna.create_study(study_name="search", direction="maximize", pruner=pruners[prune])
    for number in range(15):
        study.sampler = sampler(number)
        study.optimize(objective, n_trials=1)

    ours = run(tmp_path, prune=prune, trials=15, seed=7, trials_in_flight=1).table
    theirs = study.trials
    assert [row.params for row in ours] == [trial.params for trial in theirs]
    states = {"complete": "COMPLETE", "pruned": "PRUNED"}
    assert [states[row.state] for row in ours] == [trial.state.name for trial in theirs]
    assert len({trial.state for trial in theirs}) == (1 if prune == "none" else 2)
    assert ours.best is not None and ours.best.number == study.best_trial.number
    for row, trial in zip(ours, theirs, strict=True):
        for steps, reported in trial.intermediate_values.items():
            assert row.rungs[steps] == reported
        if row.state == "complete":
            assert row.objective == trial.value


def test_the_number_of_slots_and_their_speed_make_no_difference(tmp_path: Path) -> None:
    acts = ("", "slow", "exit 1", "nan", "stops 20")
    tables = []
    for slots in (1, 3, 9):
        screen = Lines()
        workdir = tmp_path / str(slots)
        search = run(workdir, slots=slots, acts=acts, screen=screen, seed=3)
        tables.append(search.table)
        assert screen.most_running == min(slots, 6)
        assert search.optuna_study.get_trials()[-1].state.is_finished()
        assert set(starts(workdir)) == set(range(20)), "each trial has run"
    assert all(table == tables[0] for table in tables)
    states = collections.Counter(row.state for row in tables[0])
    assert states["failed"] >= 3 and states["pruned"] >= 3 and states["complete"] >= 2, states
    failures = {row.failure for row in tables[0] if row.state == "failed"}
    assert {"a line for people", "score is nan at step 3"} <= failures
    stopped = [row for row in tables[0] if row.params["act"] == "stops 20"]
    assert any(row.steps == 20 and row.state == "complete" for row in stopped)


def test_a_search_that_is_killed_anywhere_ends_with_the_same_table(tmp_path: Path) -> None:
    acts = ("", "once kill", "once exit 138", "once exit 143", "nan")
    undisturbed = run(tmp_path / "undisturbed", acts=acts, seed=5)
    random = np.random.default_rng(1)
    kills = left = 0  # results until the next kill

    def change(table: Table) -> None:
        nonlocal left
        left -= 1

    def wait(seconds: float) -> Sequence[signal.Signals]:
        if left < 0:
            raise Killed
        return polled(seconds)

    while True:
        left = int(random.integers(0, 4))
        try:
            search = run(
                tmp_path / "killed", acts=acts, seed=5, wait=wait, on_change=change, slots=3
            )
            break
        except Killed:
            kills += 1
    assert kills >= 5
    assert search.table == undisturbed.table
    # A result is not computed twice: a trial starts once for each rung, for a kill, or a restart.
    rungs = {row.number: max(1, len(row.rungs)) for row in search.table}
    again = [row.number for row in search.table if "once" in row.params["act"]]
    expected = {number: rungs[number] + (number in again) for number in rungs}
    assert again and starts(tmp_path / "undisturbed") == expected
    assert sum(starts(tmp_path / "killed").values()) <= sum(rungs.values()) + 20 + 3 * kills


def test_more_trials_later_are_more_trials_at_once(tmp_path: Path) -> None:
    at_once = run(tmp_path / "at_once", trials=20).table
    first = run(tmp_path / "later", trials=11).table
    assert len(first) == 11 and all(row.state != "running" for row in first)
    begun = starts(tmp_path / "later")
    assert run(tmp_path / "later", trials=20).table == at_once
    assert run(tmp_path / "later", trials=20).table == at_once, "nothing was left to do"
    assert set(starts(tmp_path / "later")) == set(range(20))
    assert sum(begun.values()) < sum(starts(tmp_path / "later").values())


def test_an_asynchronous_search_goes_on_in_the_order_that_it_had(tmp_path: Path) -> None:
    tables: list[Table] = []
    acts = ("", "slow")

    def wait(seconds: float) -> Sequence[signal.Signals]:
        if tables and sum(row.state != "running" for row in tables[-1]) > 8:
            raise Killed
        return polled(seconds)

    flags: dict[str, Any] = {"asynchronous": True, "acts": acts, "slots": 4}
    with pytest.raises(Killed):
        run(tmp_path, on_change=tables.append, wait=wait, **flags)
    again: list[Table] = []
    final = run(tmp_path, on_change=again.append, **flags).table
    assert len(final) == 20 and all(row.state != "running" for row in final)
    done = [row for row in tables[-1] if row.state != "running"]
    assert [final[row.number] for row in done] == done
    with (tmp_path / "order.txt").open("a") as file:
        file.write("trial\n3")  # as if killed while it wrote
    assert run(tmp_path, trials=21, **{**flags, "slots": 2}).table[:20] == final[:20]


def test_failures_in_a_row_end_the_search(tmp_path: Path) -> None:
    tables: list[Table] = []
    with pytest.raises(TrainingError, match=r"3 trials failed in a row .*a line for people"):
        run(tmp_path, acts=("exit 1",), max_failures=3, on_change=tables.append)
    assert len(starts(tmp_path)) <= 3 + 6
    assert [row.state for row in tables[-1][:4]] == ["failed"] * 3 + ["running"]


def test_bad_input_of_one_trial_ends_the_search(tmp_path: Path) -> None:
    with pytest.raises(
        BadInput, match=r"(?s)trial 0 ended with 2 \(bad input\).*a line for people"
    ):
        run(tmp_path, acts=("exit 2",))
    assert not list(tmp_path.glob("trials/*/failure.json")), "another start may do better"


def test_a_trial_that_is_killed_again_and_again_has_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tfdp.search.coordinator.MAX_PAUSE_S", 0.01)
    screen = Lines()
    table = run(tmp_path, acts=("kill",), trials=1, screen=screen).table
    reason = "trial 0 was killed by SIGKILL, 10 times in a row without a new checkpoint"
    assert table[0].state == "failed" and table[0].failure == reason
    assert starts(tmp_path) == {0: 10}
    assert screen.lines == ["trial 0 was killed by SIGKILL: it starts again"] * 9


def test_a_slot_whose_host_is_away_makes_no_difference(tmp_path: Path) -> None:
    is_back = tmp_path / "is-back"
    script = 'test -e "$0" || exit 138; exec "$@"'
    slots = [Slot("h1", ("sh", "-c", script, str(is_back)), may_be_away=True), Slot("slot 0")]
    screen, expected = Lines(), run(tmp_path / "undisturbed", trials=12).table
    assert run(tmp_path / "away", slots=slots, trials=12, screen=screen).table == expected
    assert "before it trained on h1: it starts again" in screen.lines[0]
    alone = Lines()

    def wait(seconds: float) -> Sequence[signal.Signals]:
        if alone.lines:
            is_back.touch()
        return polled(seconds)

    found = run(tmp_path / "back", slots=slots[:1], trials=12, screen=alone, wait=wait)
    assert found.table == expected
    assert len(alone.lines) == 1


def test_results_from_another_host_may_be_seen_late(tmp_path: Path) -> None:
    slots = [
        Slot(
            "h1",
            ("sh", "-c", 'mkdir "$0" 2>/dev/null || exec "$@"', str(tmp_path / "late")),
            may_be_away=True,
        )
    ]
    screen, expected = Lines(), run(tmp_path / "undisturbed", trials=3).table
    assert run(tmp_path / "late-results", slots=slots, trials=3, screen=screen).table == expected
    assert screen.lines == ["trial 0 ended with 0: it starts again"]


def test_a_trial_that_takes_too_long_has_failed(tmp_path: Path) -> None:
    table = run(tmp_path, acts=("sleep",), trials=2, trial_timeout_s=0.5).table
    assert {row.failure for row in table} == {
        "it has trained for more than 0.5 s (--trial_timeout_s)"
    }
    assert run(tmp_path, acts=("sleep",), trials=2, trial_timeout_s=0.5).table == table
    assert starts(tmp_path) == {0: 1, 1: 1}


def test_a_trial_that_takes_too_long_in_several_starts_has_failed(tmp_path: Path) -> None:
    def stopped_after_a_while(seconds: float) -> Sequence[signal.Signals]:
        return [signal.SIGTERM] if time.monotonic() > until_s else polled(seconds)

    flags: dict[str, Any] = {"acts": ("sleep",), "trials": 1, "trial_timeout_s": 1.0}
    stops, table = 0, ()
    while not table:
        until_s = time.monotonic() + 0.6
        try:
            table = run(tmp_path, wait=stopped_after_a_while, **flags).table
        except SearchStopped:
            stops += 1
            assert stops < 50  # a slow machine needs more than one
    assert stops
    assert table[0].failure == "it has trained for more than 1 s (--trial_timeout_s)"


def test_a_search_ends_when_its_time_is_up_and_goes_on_with_more(tmp_path: Path) -> None:
    short = run(tmp_path, acts=("", "sleep"), trials=6, timeout_s=1.0, seed=2, prune="none").table
    assert any(row.state == "running" for row in short)
    acts = ("", "sleep")
    long = run(
        tmp_path, acts=acts, trials=6, trial_timeout_s=0.5, seed=2, prune="none", slots=6
    ).table
    assert [row.state for row in long] == [
        "failed" if row.params["act"] == "sleep" else "complete" for row in long
    ]
    assert len({row.state for row in long}) == 2


def test_no_trial_starts_beyond_the_budget(tmp_path: Path) -> None:
    whole = run(tmp_path / "whole", prune="none", trials_in_flight=2).table
    assert sum(row.examples for row in whole) == 20 * 8 * TOTAL
    for slots in (1, 3):
        search = run(
            tmp_path / str(slots),
            prune="none",
            trials_in_flight=2,
            budget_examples=5 * 8 * TOTAL,
            slots=slots,
        )
        assert search.table.rows == whole[:6], "five used it up while the sixth was in flight"


@pytest.mark.parametrize("name", ["trial.json", "summary.json", "pauses/3.json"])
def test_a_damaged_file_of_a_trial_is_named(name: str, tmp_path: Path) -> None:
    table = run(tmp_path, trials=4).table
    damaged = next(tmp_path.glob(f"trials/*/{name}"))
    damaged.write_text(damaged.read_text()[:-2])
    folder = tmp_path / "trials" / damaged.relative_to(tmp_path / "trials").parts[0]
    with pytest.raises(BadInput, match=f"{folder} is damaged .*: restore it, or remove"):
        run(tmp_path, trials=4)
    shutil.rmtree(folder)
    assert run(tmp_path, trials=4).table == table


@pytest.mark.parametrize("damage", ["0 x\n", "1 3\n"])
def test_a_damaged_order_is_refused(damage: str, tmp_path: Path) -> None:
    flags: dict[str, Any] = {"trials": 2, "asynchronous": True}
    run(tmp_path, **flags)
    (tmp_path / "order.txt").write_text(damage)
    with pytest.raises(BadInput, match=r"order\.txt, the order of .* is damaged"):
        run(tmp_path, **flags)


def test_why_a_trial_failed_does_not_depend_on_where_it_ran(tmp_path: Path) -> None:
    launcher = (sys.executable, "-m", "cluster.launch", "--workers=1", "--")
    for name, slot in (("here", Slot("slot 0")), ("launched", Slot("h1", launcher))):
        table = run(tmp_path / name, slots=[slot], acts=("exit 1 with path",), trials=1).table
        assert table[0].failure == "see trials/0000/logs"


def test_a_full_disk_is_no_failure_of_a_trial(tmp_path: Path) -> None:
    acts = ("", "once exit 1 on a full disk")
    with pytest.raises(TrainingError, match=r"trial \d ended with 1 .* No space left on device"):
        run(tmp_path, acts=acts, trials=4, prune="none", seed=2)
    while True:
        try:
            table = run(tmp_path, acts=acts, trials=4, prune="none", seed=2).table
            break
        except TrainingError as error:
            assert "No space left" in str(error)
    assert [row.state for row in table] == ["complete"] * 4


def test_a_signal_stops_trials_and_the_search_goes_on_later(tmp_path: Path) -> None:
    calls = 0

    def wait(seconds: float) -> Sequence[signal.Signals]:
        nonlocal calls
        calls += 1
        time.sleep(0.05)
        return [signal.SIGTERM] if calls == 4 else []

    with pytest.raises(SearchStopped, match="SIGTERM ended the search; the same command goes on"):
        run(tmp_path, acts=("slow",), trials=3, prune="none", wait=wait)
    other = run(tmp_path / "other", acts=("slow",), trials=3, prune="none")
    assert run(tmp_path, acts=("slow",), trials=3, prune="none").table == other.table


def test_a_folder_of_another_trial_is_refused(tmp_path: Path) -> None:
    run(tmp_path, trials=2)
    with pytest.raises(BadInput, match=r"trials/0000 was made for .*'x': .* is now .*'x'"):
        run(tmp_path, trials=2, seed=1)
