"""A search's files in the real servers that people look at them with."""

from __future__ import annotations

import json
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import tensorflow as tf

from tests.processes.search_pages import LIMIT_S, dashboard, tensorboard
from tests.running import wait_until
from tests.searches import search
from tfdp.search.curves import Curves
from tfdp.search.storage import open_storage
from tfdp.search.table import Table


def ask(url: str, body: Any = None, method: str | None = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(url, data=data, headers=headers, method=method)
    with urllib.request.urlopen(request, timeout=30) as answer:
        text = answer.read()
    return json.loads(text) if text else None


def trials_of(address: str) -> list[dict[str, Any]]:
    trials: list[dict[str, Any]] = ask(f"{address}/api/studies/0?after=0")["trials"]
    return trials


def test_the_dashboard_stays_open_while_a_search_is_started_again(tmp_path: Path) -> None:
    journal = tmp_path / "study.log"
    search(open_storage(journal), trials=20, running=0)
    with dashboard(journal) as address:
        before = trials_of(address)
        assert len(before) == 20
        note = {"body": "looks good", "version": 1}
        ask(f"{address}/api/studies/0/note", note, "PUT")
        study, table = search(open_storage(journal), trials=40)
        trials = wait_until(
            lambda: len(found := trials_of(address)) == 40 and found, LIMIT_S, "it shows 40 trials"
        )
        assert trials[:20] == before
        detail = ask(f"{address}/api/studies/0?after=0")
        assert detail["note"] == note
        states = {
            "complete": "Complete",
            "pruned": "Pruned",
            "failed": "Fail",
            "running": "Running",
        }
        for row, trial, shown in zip(table, study.trials, trials, strict=True):
            assert shown["number"] == row.number
            assert shown["state"] == states[row.state]
            assert {p["name"]: p["param_external_value"] for p in shown["params"]} == {
                name: str(value) for name, value in row.params.items()
            }
            rungs = {each["step"]: each["value"] for each in shown["intermediate_values"]}
            assert rungs == row.rungs == trial.intermediate_values
            assert shown.get("values") == (None if trial.values is None else trial.values)
            attributes = {each["key"]: each["value"] for each in shown["user_attrs"]}
            assert attributes == {k: str(v) for k, v in trial.user_attrs.items()}


EVERY = {
    "allowedStatuses": [f"STATUS_{x}" for x in ("UNKNOWN", "SUCCESS", "FAILURE", "RUNNING")],
    "colParams": [],
    "startIndex": 0,
    "sliceSize": 1000,
}


@pytest.mark.parametrize("flags", [[], ["--load_fast=false"]], ids=["fast", "slow"])
def test_tensorboard_shows_a_line_for_each_trial(flags: list[str], tmp_path: Path) -> None:
    study, table = search()
    early = Table(table.rows[:20], table.objective)
    Curves(tmp_path).update(early)
    # As a run of a trial writes its curves; they are no metrics of the search.
    with tf.summary.create_file_writer(
        str(tmp_path / table[7].folder / "tensorboard")
    ).as_default():
        for step in (3, 9, 27):
            tf.summary.scalar("eval/accuracy", 0.25, step=step)
    with tensorboard(tmp_path / "trials", *flags) as address:
        plugin = f"{address}/data/plugin/hparams"

        def shown() -> dict[str, dict[str, Any]]:
            groups = ask(f"{plugin}/session_groups", EVERY).get("sessionGroups", [])
            assert len({group["name"] for group in groups}) == len(groups)
            assert all(len(group["sessions"]) == 1 for group in groups)
            return {group["name"]: group for group in groups}

        wait_until(lambda: len(shown()) == 20, LIMIT_S, "20 trials are shown")
        for each in (early, table, table, early):  # of a search that is started again, and again
            Curves(tmp_path).update(each)
        Curves(tmp_path).update(table)
        wait_until(lambda: len(shown()) == 40, LIMIT_S, "40 trials are shown")

        def has_end(state: str) -> bool:
            numbers = [row.number for row in table if row.state == state]
            return all(
                shown()[f"{n:04d}"]["sessions"][0]["status"] != "STATUS_UNKNOWN" for n in numbers
            )

        wait_until(lambda: has_end("pruned"), LIMIT_S, "trials are seen to end")
        statuses = {"complete": "SUCCESS", "pruned": "SUCCESS", "failed": "FAILURE"}
        groups = shown()
        for trial, row in zip(study.trials, table, strict=True):
            group = groups[f"{trial.number:04d}"]
            assert group["hparams"] == trial.params
            status = f"STATUS_{statuses.get(row.state, 'UNKNOWN')}"
            assert group["sessions"][0]["status"] == status
            (metric,) = group["metricValues"] or [None]
            if not trial.intermediate_values:
                assert metric is None
                continue
            step, value = list(trial.intermediate_values.items())[-1]
            assert metric["name"] == {"tag": "accuracy", "group": ""}
            assert (metric["trainingStep"], metric["value"]) == (step, pytest.approx(value))
        experiment = ask(f"{plugin}/experiment", {})
        assert {info["name"] for info in experiment["hparamInfos"]} == {
            name for trial in study.trials for name in trial.params
        }
        tags = ask(f"{address}/data/plugin/scalars/tags")
        assert list(tags["0007/tensorboard"]) == ["eval/accuracy"]
        assert list(tags["0007/search"]) == ["accuracy"]
        scalars = f"{address}/data/plugin/scalars/scalars?run=0007%2Fsearch&tag=accuracy"
        curve = [(step, value) for _, step, value in ask(scalars)]
        rungs = study.trials[7].intermediate_values.items()
        assert curve == [(step, pytest.approx(value)) for step, value in rungs]
