from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial

from tests.searches import search
from tfdp.search.storage import open_storage


def as_optuna_reads(path: Path) -> list[FrozenTrial]:
    (study,) = optuna.get_all_study_summaries(JournalStorage(JournalFileBackend(str(path))))
    return optuna.load_study(
        study_name=study.study_name, storage=JournalStorage(JournalFileBackend(str(path)))
    ).trials


def without_times(trials: list[FrozenTrial]) -> list[dict[str, Any]]:
    return [
        {name: value for name, value in vars(trial).items() if "datetime" not in name}
        for trial in trials
    ]


def test_optuna_reads_what_optuna_would_have_written(tmp_path: Path) -> None:
    ours, _ = search(open_storage(tmp_path / "ours.log"))
    theirs, _ = search(JournalStorage(JournalFileBackend(str(tmp_path / "theirs.log"))))
    assert as_optuna_reads(tmp_path / "ours.log") == ours.trials
    assert as_optuna_reads(tmp_path / "theirs.log") == theirs.trials
    assert without_times(ours.trials) == without_times(theirs.trials)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ours.log", "theirs.log"]


@pytest.mark.parametrize("lost", [0, 1, 2, 1000, 20_000, 40_000, 10**9])
def test_a_search_that_begins_anew_goes_on_in_the_file(lost: int, tmp_path: Path) -> None:
    path = tmp_path / "study.log"
    before, _ = search(open_storage(path))
    whole = path.read_bytes()
    os.truncate(path, max(0, len(whole) - lost))  # as a kill leaves it, amid a line
    kept = path.read_bytes().rpartition(b"\n")[0]
    reader = JournalStorage(JournalFileBackend(str(path)))
    if kept:
        open_storage(path)  # drops the unfinished line
        reader.get_all_studies()
    after, _ = search(open_storage(path))
    assert path.read_bytes().startswith(kept)
    assert path.read_bytes().count(b"\n") == whole.count(b"\n")
    assert without_times(after.trials) == without_times(before.trials)
    assert as_optuna_reads(path) == after.trials
    assert reader.get_all_trials(0) == after.trials  # one that was open all the time
    if not lost:
        assert after.trials == before.trials
        assert path.read_bytes() == whole


def test_a_longer_search_goes_on_in_the_file(tmp_path: Path) -> None:
    path = tmp_path / "study.log"
    before, _ = search(open_storage(path), trials=20, running=0)
    whole = path.read_bytes()
    after, _ = search(open_storage(path), trials=30, running=0)
    assert path.read_bytes().startswith(whole)
    assert as_optuna_reads(path)[:20] == before.trials == after.trials[:20]


def test_what_the_dashboard_wrote_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "study.log"
    search(open_storage(path), trials=10, running=0)
    dashboard = JournalStorage(JournalFileBackend(str(path)))
    dashboard.set_study_user_attr(0, "note", "a good one")
    search(open_storage(path), trials=20, running=0)
    assert dashboard.get_study_user_attrs(0)["note"] == "a good one"
    study = optuna.load_study(study_name="search", storage=dashboard)
    assert len(study.trials) == 20


def test_a_lock_that_somebody_left_behind_blocks_nobody(tmp_path: Path) -> None:
    path = tmp_path / "study.log"
    search(open_storage(path), trials=3)
    (tmp_path / "study.log.lock").symlink_to(path)  # as a dashboard that was killed amid a note
    began_s = time.monotonic()
    search(open_storage(path), trials=6)
    assert len(as_optuna_reads(path)) == 6
    assert time.monotonic() - began_s < 20  # Optuna's own writer waits for 30 s


def test_another_search_replaces_the_rest_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "study.log"
    search(open_storage(path), trials=20, running=0)
    # The last trial still runs this time: one operation is missing, and others follow.
    after, _ = search(open_storage(path), trials=15, running=1)
    after.tell(14, 0.5)
    assert as_optuna_reads(path) == after.trials


@pytest.mark.parametrize("damage", [b"\0" * 100 + b"\n", b"[1]\n", b'{"op_code":4', b"\xff\n"])
def test_a_damaged_file_is_written_anew_from_there(damage: bytes, tmp_path: Path) -> None:
    path = tmp_path / "study.log"
    search(open_storage(path))
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:50]) + damage + b"".join(lines[51:]))
    after, _ = search(open_storage(path))
    assert as_optuna_reads(path) == after.trials
    assert path.read_bytes().splitlines(keepends=True)[:50] == lines[:50]
    for line in path.read_text().splitlines():
        json.loads(line)
