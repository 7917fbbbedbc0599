from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import metadata
from tensorboard.plugins.hparams.api_pb2 import STATUS_FAILURE, STATUS_SUCCESS
from tensorboard.util import tensor_util

from tests.running import run
from tests.searches import ACCURACY, search
from tfdp.search.curves import FILE, Curves
from tfdp.search.table import Table


def as_tensorboard_reads(folder: Path) -> tuple[dict[str, Any], list[tuple[int, float]], Any]:
    """Parameters, the objective's curve, and the status of a trial; None while it runs."""
    events = EventAccumulator(str(folder))
    events.Reload()
    contents = events.PluginTagToContent("hparams")
    start = metadata.parse_session_start_info_plugin_data(contents[metadata.SESSION_START_INFO_TAG])
    params = {
        name: getattr(value, str(value.WhichOneof("kind"))) for name, value in start.hparams.items()
    }
    has_curve = "accuracy" in events.Tags()["tensors"]
    curve = [
        (event.step, float(tensor_util.make_ndarray(event.tensor_proto)))
        for event in (events.Tensors("accuracy") if has_curve else ())
    ]
    if (end := contents.get(metadata.SESSION_END_INFO_TAG)) is None:
        return params, curve, None
    return params, curve, metadata.parse_session_end_info_plugin_data(end).status


def files(workdir: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(workdir)): path.read_bytes()
        for path in sorted(workdir.rglob("*"))
        if path.is_file()
    }


def test_tensorboard_reads_what_optuna_has(tmp_path: Path) -> None:
    study, table = search()
    Curves(tmp_path).update(table)
    statuses = {
        "COMPLETE": STATUS_SUCCESS,
        "PRUNED": STATUS_SUCCESS,
        "FAIL": STATUS_FAILURE,
        "RUNNING": None,
    }
    for trial in study.trials:
        folder = tmp_path / "trials" / f"{trial.number:04d}" / "search"
        params, curve, status = as_tensorboard_reads(folder)
        assert params == trial.params
        assert curve == [
            (step, pytest.approx(value, abs=1e-6))
            for step, value in trial.intermediate_values.items()
        ]
        assert status == statuses[trial.state.name]


def test_files_grow_at_their_end_and_only_there(tmp_path: Path) -> None:
    _, table = search()
    best = table.best
    assert best is not None and len(best.rungs) == 3
    path = tmp_path / best.folder / FILE
    curves = Curves(tmp_path)
    row = dataclasses.replace(best, state="running", rungs={}, steps=0, objective=None)
    contents = []
    for steps, value in [(0, None), *best.rungs.items()]:
        rungs = {step: each for step, each in best.rungs.items() if step <= steps}
        row = dataclasses.replace(row, rungs=rungs, steps=steps, objective=value)
        curves.update(Table([row], ACCURACY))
        contents.append(path.read_bytes())
    curves.update(Table([best], ACCURACY))
    contents.append(path.read_bytes())
    for before, after in itertools.pairwise(contents):
        assert after.startswith(before) and after != before
    # A search that is started again comes along all of these once more.
    Curves(tmp_path).update(Table([row], ACCURACY))
    assert path.read_bytes() == contents[-1]
    for length in (0, 10, len(contents[0]), len(contents[-1]) - 1):  # a kill amid a write
        path.write_bytes(contents[-1][:length])
        Curves(tmp_path).update(Table([best], ACCURACY))
        assert path.read_bytes() == contents[-1]
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == [path]


def test_every_process_writes_the_same(tmp_path: Path) -> None:
    script = """
import pathlib, sys
from tests.searches import search
from tfdp.search.curves import Curves
Curves(pathlib.Path(sys.argv[1])).update(search()[1])
assert "tensorflow" not in sys.modules
"""
    for name in ("1", "2", "3"):
        run(["python", "-c", script, str(tmp_path / name)], env={"PYTHONHASHSEED": name})
    assert len(files(tmp_path / "1")) == 40
    assert files(tmp_path / "1") == files(tmp_path / "2") == files(tmp_path / "3")


def test_a_file_of_another_search_is_replaced(tmp_path: Path) -> None:
    _, table = search(trials=3)
    path = tmp_path / table[0].folder / FILE
    path.parent.mkdir(parents=True)
    path.write_bytes(b"something else")
    Curves(tmp_path).update(table)
    assert as_tensorboard_reads(path.parent)[0] == table[0].params


def test_values_that_tensorboard_does_not_have(tmp_path: Path) -> None:
    _, table = search(trials=1, running=0)
    params = {"sizes": (1, 2), "none": None, "is_wide": True, "units": 3}
    odd = dataclasses.replace(table[0], params=params, rungs={3: float("nan"), 9: 0.5})
    Curves(tmp_path).update(Table([odd], ACCURACY))
    shown, curve, _ = as_tensorboard_reads((tmp_path / odd.folder / FILE).parent)
    assert shown == {"sizes": "(1, 2)", "none": "None", "is_wide": True, "units": 3.0}
    assert curve == [(9, 0.5)]
