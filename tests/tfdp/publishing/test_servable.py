from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from tests.running import Process, wait_until
from tfdp.publishing import servable
from tfdp.publishing.servable import PROVENANCE_FILE, Draft, remove_old, versions

# Publishes versions of 30 files without end; each file holds the publisher and the version's turn.
PUBLISHER = """
import itertools, sys
from pathlib import Path
from tfdp.publishing.servable import Draft, remove_old

folder, name, keep = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
for turn in itertools.count():
    with Draft(folder) as draft:
        for place in range(30):
            (draft.path / str(place)).write_text(f"{name}.{turn}")
        (draft.path / "tfdp.json").write_text("{}")
        version = draft.publish()
    print(version.name, flush=True)
    if keep:
        remove_old(folder, keep, lambda: {2})
"""


def publisher(folder: Path, name: str, keep: int = 0) -> Process:
    return Process(["python", "-c", PUBLISHER, str(folder), name, str(keep)], limit_s=60)


def whole(version: Path) -> str:
    """Which publisher's turn made all of a version."""
    said = {(version / str(place)).read_text() for place in range(30)}
    assert len(said) == 1, f"{version} is not whole: {said}"
    assert (version / PROVENANCE_FILE).read_text() == "{}"
    return said.pop()


def test_a_kill_at_any_instant_leaves_whole_versions_only(tmp_path: Path) -> None:
    rng = random.Random(8)
    for round_ in range(8):
        with publisher(tmp_path, str(round_), keep=3) as process:
            process.wait_for(r"(\d+\n){5}")
            time.sleep(rng.uniform(0, 0.02))
            process.signal(signal.SIGKILL)
            process.wait(-signal.SIGKILL)
        for path in versions(tmp_path).values():
            whole(path)
        assert 2 in versions(tmp_path), "it has to stay"
    last = max(versions(tmp_path))
    with Draft(tmp_path) as draft:  # which clears up what was left by all of them
        (draft.path / "file").touch()
        assert [path.name for path in tmp_path.glob(".*")] == [draft.path.name]
        assert draft.publish() == tmp_path / str(last + 1)
    assert not list(tmp_path.glob(".*"))


def test_publishers_at_once_never_take_the_same_number(tmp_path: Path) -> None:
    with publisher(tmp_path, "a") as one, publisher(tmp_path, "b") as other:
        seen: dict[int, str] = {}
        until_s = time.monotonic() + 30
        while len(seen) < 60 or len({each[0] for each in seen.values()}) < 2:
            assert time.monotonic() < until_s, f"they published {len(seen)} versions only"
            for number, path in versions(tmp_path).items():
                if number not in seen:
                    seen[number] = whole(path)  # the moment that it is there
        for process in (one, other):
            process.signal(signal.SIGKILL)
            process.wait(-signal.SIGKILL)
        numbers = [each.output.split() for each in (one, other)]
    made = [whole(path) for path in versions(tmp_path).values()]
    assert len(set(made)) == len(made)
    assert not set(numbers[0]) & set(numbers[1])
    assert list(versions(tmp_path)) == list(range(1, len(made) + 1))


def test_who_finds_a_number_taken_takes_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_versions(tmp_path, 1, 2)
    listings = [{}, {1: tmp_path / "1"}]  # as they were a moment ago

    def late(folder: Path) -> dict[int, Path]:
        return listings.pop(0) if listings else versions(folder)

    with Draft(tmp_path) as draft:
        (draft.path / "file").touch()
        monkeypatch.setattr(servable, "versions", late)
        assert draft.publish() == tmp_path / "3"
    assert not (tmp_path / "1" / "file").exists()


def test_what_living_publishers_write_is_left_alone(tmp_path: Path) -> None:
    with publisher(tmp_path, "a") as process:
        hidden = lambda: list(tmp_path.glob(".unpublished-*"))  # noqa: E731
        # Once there is a file in it, it is locked.
        written = lambda: list(tmp_path.glob(".unpublished-*/0"))  # noqa: E731
        path = wait_until(written, 20, "it writes")[0].parent
        process.signal(signal.SIGSTOP)
        stopped = lambda: psutil.Process(process.pid).status() == psutil.STATUS_STOPPED  # noqa: E731
        wait_until(stopped, 20, "it has stopped")
        if path.exists():  # or it was published just then
            with Draft(tmp_path):
                assert path.exists()
        process.signal(signal.SIGKILL)
        process.wait(-signal.SIGKILL)
    with Draft(tmp_path) as mine:
        assert hidden() == [mine.path]


def test_a_draft_that_another_sweeps_before_it_is_opened_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    swept: list[Path] = []
    open_: Callable[..., int] = os.open

    def late(path: Path, *flags: int) -> int:
        if not swept:
            swept.append(path)
            path.rmdir()
        return open_(path, *flags)

    monkeypatch.setattr(servable.os, "open", late)
    with Draft(tmp_path) as draft:
        assert [draft.path] == list(tmp_path.iterdir()) != swept


def test_a_draft_that_fails_leaves_nothing(tmp_path: Path) -> None:
    def refuse() -> None:
        raise RuntimeError("no")

    with pytest.raises(RuntimeError), Draft(tmp_path) as draft:
        (draft.path / "file").touch()
        draft.publish(refuse)
    assert not list(tmp_path.iterdir())


def make_versions(folder: Path, *numbers: int, others: tuple[int, ...] = ()) -> None:
    for number in (*numbers, *others):
        (folder / str(number)).mkdir()
        (folder / str(number) / "saved_model.pb").touch()
        if number in numbers:
            (folder / str(number) / PROVENANCE_FILE).write_text("{}")


@pytest.mark.parametrize(
    ("keep", "needed", "left"),
    [
        (1, set(), [4, 9]),
        (2, set(), [4, 7, 9]),
        (9, set(), [1, 2, 4, 7, 9]),
        (1, {1, 3}, [1, 4, 9]),
    ],
)
def test_old_versions_are_kept_by_count(
    keep: int, needed: set[int], left: list[int], tmp_path: Path
) -> None:
    make_versions(tmp_path, 1, 2, 7, 9, others=(4,))
    (tmp_path / ".removed-x").mkdir()
    remove_old(tmp_path, keep, lambda: needed)
    assert sorted(path.name for path in tmp_path.iterdir()) == [str(each) for each in left]


def test_what_is_needed_is_asked_before_each_removal(tmp_path: Path) -> None:
    make_versions(tmp_path, 1, 2, 3, 4)
    answers: list[set[int]] = [set(), {2}, set()]
    remove_old(tmp_path, 1, lambda: answers.pop(0))
    assert list(versions(tmp_path)) == [2, 4]


def test_a_version_goes_by_one_rename(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_versions(tmp_path, 1, 2)
    seen: list[list[int]] = []
    remove: Callable[..., None] = servable.shutil.rmtree

    def looked_at(path: Path, **options: bool) -> None:
        seen.append(list(versions(tmp_path)))
        assert path.name.startswith(".removed-")
        remove(path, **options)

    monkeypatch.setattr(servable.shutil, "rmtree", looked_at)
    remove_old(tmp_path, 1, set)
    assert seen == [[2]]


def test_versions_are_names_that_are_numbers(tmp_path: Path) -> None:
    for name in ("10", "9", "007", "notes", "٣", "-1", "1.5", ".unpublished-x"):
        os.mkdir(tmp_path / name)  # noqa: PTH102
    assert {number: path.name for number, path in versions(tmp_path).items()} == {
        7: "007",
        9: "9",
        10: "10",
    }
