from __future__ import annotations

import csv
import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.searches import ACCURACY, search
from tfdp.errors import BadInput
from tfdp.search import table_files
from tfdp.search.table import Row, Table
from tfdp.search.table_files import TrialTimes

ABOUT = {"seed": 0, "space": {"learning_rate": "1e-4..1e-1:log"}}


def row(**changes: Any) -> Row:
    plain = {"number": 0, "state": "complete", "params": {}, "hparams": {}, "folder": "trials/0000"}
    return Row(**plain | changes)


def written(table: Table, workdir: Path) -> tuple[dict[str, Any], list[dict[str, str]]]:
    table_files.write(table, workdir, ABOUT)

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    content = json.loads((workdir / "search.json").read_text(), parse_constant=refuse)
    with (workdir / "trials.csv").open(newline="") as file:
        return content, list(csv.DictReader(file))


def test_the_files_say_what_optuna_has(tmp_path: Path) -> None:
    study, table = search()
    content, lines = written(table, tmp_path)
    assert (content["objective"], content["direction"]) == ("accuracy", "max")
    assert content["about"] == ABOUT
    best = study.best_trial
    assert content["best"] == {
        "number": best.number,
        "params": best.params,
        "objective": best.value,
        "weights_sha256": table[best.number].weights_sha256,
        "folder": f"trials/{best.number:04d}",
    }
    states = {"complete": "COMPLETE", "pruned": "PRUNED", "failed": "FAIL", "running": "RUNNING"}
    assert {line["state"] for line in lines} == set(states)  # or this example shows too little
    for trial, in_json, line in zip(study.trials, content["trials"], lines, strict=True):
        assert int(line["number"]) == in_json["number"] == trial.number
        assert states[line["state"]] == states[in_json["state"]] == trial.state.name
        assert in_json["params"] == trial.params
        of_csv = {name: line[f"params_{name}"] for name in [*trial.params, "momentum"]}
        assert of_csv == {"momentum": ""} | {name: str(v) for name, v in trial.params.items()}
        rungs = {int(steps): value for steps, value in in_json["rungs"].items()}
        assert rungs == trial.intermediate_values
        assert line["objective"] == (str(list(rungs.values())[-1]) if rungs else "")
        assert ("the loss is nan" in line["failure"]) == (line["state"] == "failed")


def test_equal_searches_have_equal_files(tmp_path: Path) -> None:
    texts = []
    for folder in ("one", "the other"):
        (tmp_path / folder).mkdir()
        written(search()[1], tmp_path / folder)
        times = [TrialTimes(number=0, training_s=len(folder), slot=folder)]
        table_files.write_times(times, tmp_path / folder)
        names = ("search.json", "trials.csv", "times.csv")
        texts.append([(tmp_path / folder / name).read_bytes() for name in names])
    (json_one, csv_one, times_one), (json_other, csv_other, times_other) = texts
    assert json_one == json_other
    assert csv_one == csv_other
    assert times_one != times_other
    assert str(tmp_path).encode() not in json_one


def test_an_empty_search_has_files(tmp_path: Path) -> None:
    content, lines = written(Table([], ACCURACY), tmp_path)
    assert content["best"] is None and content["trials"] == [] and lines == []


def test_values_that_json_does_not_have(tmp_path: Path) -> None:
    odd = row(
        state="failed",
        params={"a": True, "b": None, "steps": 3, "rate": np.float64(0.1), "size": np.int64(7)},
        hparams={"path": Path("data"), "sizes": (1, 2), "least": -math.inf},
        rungs={9: math.nan},
        objective=math.nan,
        failure='it said "no,\nnever": \udcff',
    )
    content, lines = written(Table([odd], ACCURACY), tmp_path)
    (trial,) = content["trials"]
    assert trial["params"] == {"a": True, "b": None, "steps": 3, "rate": 0.1, "size": 7}
    assert trial["hparams"] == {"path": "data", "sizes": [1, 2], "least": None}
    assert (trial["rungs"], trial["objective"]) == ({"9": None}, None)
    (line,) = lines
    assert (line["params_a"], line["params_b"]) == ("True", "None")
    assert (line["params_steps"], line["steps"], line["objective"]) == ("3", "0", "")
    assert line["failure"] == 'it said "no, never": \\udcff'


def test_times_are_read_again(tmp_path: Path) -> None:
    assert table_files.read_times(tmp_path) == {}
    times = [
        TrialTimes(number=12, training_s=1.5, restarts=2, slot="gpu 1, left"),
        TrialTimes(number=3),
    ]
    table_files.write_times(times, tmp_path)
    assert list(table_files.read_times(tmp_path).values()) == [times[1], times[0]]


@pytest.mark.parametrize("text", ["", "number\n3\n", "number,training_s\na,b\n", "\0"])
def test_times_that_are_damaged_count_as_none(text: str, tmp_path: Path) -> None:
    (tmp_path / "times.csv").write_text(text)
    assert table_files.read_times(tmp_path) == {}


def test_of_equal_trials_the_first_is_the_best(tmp_path: Path) -> None:
    rows = [
        dataclasses.replace(row(objective=value, params={"n": n}), number=n)
        for n, value in enumerate([0.5, 0.7, 0.7])
    ]
    assert written(Table(rows, ACCURACY), tmp_path)[0]["best"]["number"] == 1


def test_trials_of_an_unknown_search_are_refused(tmp_path: Path) -> None:
    assert table_files.read_about(tmp_path) == {}
    trial = tmp_path / "trials" / "0000"
    trial.mkdir(parents=True)
    assert table_files.read_about(tmp_path) == {}
    (trial / "trial.json").write_text("{}")
    with pytest.raises(BadInput, match=r"search\.json is missing, .* restore it, remove these"):
        table_files.read_about(tmp_path)
