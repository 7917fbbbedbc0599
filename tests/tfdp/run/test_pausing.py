"""A run that pauses, beside one that never did."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.tfdp.run.test_resuming import PAIR, Runs, alone, runs
from tfdp.errors import BadInput
from tfdp.run import pausing

__all__ = ["alone", "runs"]  # fixtures


def results(runs: Runs, name: str, step: int) -> dict[str, Any]:
    found = pausing.read(runs.folder / name / "run", step)
    assert found is not None
    return found


def test_pauses_anywhere_leave_no_trace(runs: Runs, capfd: Any) -> None:
    """In the middle of an epoch, at its end, and twice in a row."""
    runs.start("undisturbed")
    for step in (3, 10, 11, 11):
        runs.start("paused", pause_at_step=step)
        assert not (runs.folder / "paused" / "run" / "summary.json").exists()
    assert "has paused at step 11: nothing to do" in capfd.readouterr().err
    runs.start("paused", pause_at_step=19)  # the end
    runs.assert_alike("paused", "undisturbed")
    assert pausing.steps(runs.folder / "paused" / "run") == [3, 10, 11]
    assert runs.summary("paused")["restarts"] == 0

    # What a pause has found is what a run to that step finds.
    runs.start("short", steps=10)
    short, at_pause = runs.summary("short"), results(runs, "paused", 10)
    for name in ("weights_sha256", "metrics", "eval_metrics", "examples"):
        assert at_pause[name] == short[name], name
    assert at_pause["examples"] == 70


def test_a_step_of_ones_own_pauses(alone: Runs) -> None:
    alone.set_recipe(PAIR)
    alone.start("undisturbed")
    alone.start("paused", pause_at_step=4)
    alone.start("paused")
    alone.assert_alike("paused", "undisturbed")
    assert results(alone, "paused", 4)["eval_metrics"] == {}


def test_a_run_killed_before_its_results_were_written_writes_them(alone: Runs) -> None:
    alone.start("one", pause_at_step=4)
    expected = results(alone, "one", 4)
    path = alone.folder / "one" / "run" / "pauses" / "4.json"
    path.unlink()
    alone.start("one", pause_at_step=4)
    assert json.loads(path.read_text()) == expected
    alone.start("undisturbed")
    alone.start("one")
    alone.assert_alike("one", "undisturbed")

    alone.start("one", pause_at_step=4)  # finished meanwhile, and its results are there
    path.unlink()
    with pytest.raises(BadInput, match=r"--pause_at_step is 4, and .* is at step 19: name a later"):
        alone.start("one", pause_at_step=4)


def test_a_run_that_callbacks_stop_before_the_pause_is_finished(alone: Runs) -> None:
    quick = ("each_batch=false", "patience=1")
    alone.start("undisturbed", *quick, steps=1000)
    alone.start("paused", *quick, steps=1000, pause_at_step=999)
    alone.assert_alike("paused", "undisturbed")
    assert not pausing.steps(alone.folder / "paused" / "run")
