from __future__ import annotations

import json
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

# Publishes versions of 30 files endlessly; each file contains the publisher and a turn.
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


def read_complete(version: Path) -> str:
    """Returns the publisher and turn that wrote all files of a version."""
    contents = {(version / str(place)).read_text() for place in range(30)}
    assert len(contents) == 1, f"{version} is not complete: {contents}"
    assert (version / PROVENANCE_FILE).read_text() == "{}"
    return contents.pop()


def test_a_kill_at_any_instant_leaves_complete_versions_only(tmp_path: Path) -> None:
    rng = random.Random(8)
    for round_ in range(5):
        with publisher(tmp_path, str(round_), keep=3) as process:
            process.wait_for(r"(\d+\n){5}")
            time.sleep(rng.uniform(0, 0.02))
            process.signal(signal.SIGKILL)
            process.wait(-signal.SIGKILL)
        for path in versions(tmp_path).values():
            read_complete(path)
        assert 2 in versions(tmp_path), "it is required"
    last = max(versions(tmp_path))
    with Draft(tmp_path) as draft:  # which removes all leftovers
        (draft.path / "file").touch()
        assert [path.name for path in tmp_path.glob(".*")] == [draft.path.name]
        assert draft.publish() == tmp_path / str(last + 1)
    assert not list(tmp_path.glob(".*"))


def test_publishers_at_once_never_take_the_same_number(tmp_path: Path) -> None:
    with publisher(tmp_path, "a") as one, publisher(tmp_path, "b") as other:
        seen: dict[int, str] = {}
        until_s = time.monotonic() + 30
        while len(seen) < 60 or len({content[0] for content in seen.values()}) < 2:
            assert time.monotonic() < until_s, f"they published {len(seen)} versions only"
            for number, path in versions(tmp_path).items():
                if number not in seen:
                    seen[number] = read_complete(path)  # as soon as it appears
        for process in (one, other):
            process.signal(signal.SIGKILL)
            process.wait(-signal.SIGKILL)
        numbers = [process.output.split() for process in (one, other)]
    made = [read_complete(path) for path in versions(tmp_path).values()]
    assert len(set(made)) == len(made)
    assert not set(numbers[0]) & set(numbers[1])
    assert list(versions(tmp_path)) == list(range(1, len(made) + 1))


def test_a_publisher_whose_number_is_taken_gets_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_versions(tmp_path, 1, 2)
    listings = [{}, {1: tmp_path / "1"}]  # outdated

    def outdated(folder: Path) -> dict[int, Path]:
        return listings.pop(0) if listings else versions(folder)

    with Draft(tmp_path) as draft:
        (draft.path / "file").touch()
        monkeypatch.setattr(servable, "versions", outdated)
        assert draft.publish() == tmp_path / "3"
    assert not (tmp_path / "1" / "file").exists()


def test_a_draft_of_a_living_publisher_is_not_removed(tmp_path: Path) -> None:
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


def test_a_draft_that_is_removed_before_it_is_locked_is_created_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    removed: list[Path] = []
    open_: Callable[..., int] = os.open

    def remove_and_open(path: Path, *flags: int) -> int:
        if not removed:
            removed.append(path)
            path.rmdir()
        return open_(path, *flags)

    monkeypatch.setattr(servable.os, "open", remove_and_open)
    with Draft(tmp_path) as draft:
        assert [draft.path] == list(tmp_path.iterdir()) != removed


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
    ("keep", "required", "remaining"),
    [
        (1, set(), [4, 9]),
        (2, set(), [4, 7, 9]),
        (9, set(), [1, 2, 4, 7, 9]),
        (1, {1, 3}, [1, 4, 9]),
    ],
)
def test_old_versions_are_kept_by_count(
    keep: int, required: set[int], remaining: list[int], tmp_path: Path
) -> None:
    make_versions(tmp_path, 1, 2, 7, 9, others=(4,))
    (tmp_path / ".removed-x").mkdir()
    remove_old(tmp_path, keep, lambda: required)
    assert sorted(path.name for path in tmp_path.iterdir()) == [str(number) for number in remaining]


def test_required_versions_are_determined_before_each_removal(tmp_path: Path) -> None:
    make_versions(tmp_path, 1, 2, 3, 4)
    answers: list[set[int]] = [set(), {2}, set()]
    remove_old(tmp_path, 1, lambda: answers.pop(0))
    assert list(versions(tmp_path)) == [2, 4]


def test_a_version_disappears_by_one_rename(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_versions(tmp_path, 1, 2)
    seen: list[list[int]] = []
    remove: Callable[..., None] = servable.shutil.rmtree

    def inspect_and_remove(path: Path, **options: bool) -> None:
        seen.append(list(versions(tmp_path)))
        assert path.name.startswith(".removed-")
        remove(path, **options)

    monkeypatch.setattr(servable.shutil, "rmtree", inspect_and_remove)
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
    assert versions(tmp_path / "nowhere") == {}


def test_the_newest_version_of_a_provenance_is_found(tmp_path: Path) -> None:
    assert servable.published(tmp_path / "nowhere", {"run": "a"}) is None
    for number, provenance in enumerate(({"run": "a", "step": 1}, {"run": "a", "step": 2}), 1):
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / "tfdp.json").write_text(json.dumps(provenance | {"more": 0}))
    for number in (3, 9):  # of somebody else, and damaged
        (tmp_path / str(number)).mkdir()
    (tmp_path / "9" / "tfdp.json").write_text("{ half")
    assert servable.published(tmp_path, {"run": "a"}) == tmp_path / "2"
    assert servable.published(tmp_path, {"run": "a", "step": 1}) == tmp_path / "1"
    assert servable.published(tmp_path, {"run": "b"}) is None
