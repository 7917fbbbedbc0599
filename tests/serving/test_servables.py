"""Versions that come and go: which are loaded, when they take over, when they are unloaded."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from serving.server.models.servables import (
    Servable,
    ServableNotFound,
    Version,
    VersionPolicy,
    VersionState,
    every,
    latest,
    specific,
)
from tests.running import wait_until


class Model:
    """A version's folder as a model: its file's text is the answer, and ``broken`` can't load."""

    def __init__(self, folder: Path) -> None:
        self.answer = (folder / "answer").read_text()
        self.closed = False
        if self.answer == "broken":
            raise ValueError("this one is broken")

    def close(self) -> None:
        assert not self.closed
        self.closed = True


def publish(base: Path, name: str, answer: str) -> Path:
    folder = base / name
    folder.mkdir(parents=True)
    (folder / "answer").write_text(answer)
    return folder


@contextmanager
def used(servable: Servable[Any], number: int | None = None) -> Iterator[Version[Any]]:
    """A version in use, as by a call."""
    version = servable.acquire(number)
    try:
        yield version
    finally:
        servable.release(version)


def answer(servable: Servable[Model], number: int | None = None) -> tuple[int, str]:
    with used(servable, number) as version:
        assert version.model
        return version.number, version.model.answer


class HeldLoader:
    """Loads models, but the version ``held`` only once ``go_on`` is set."""

    def __init__(self, held: str) -> None:
        self.held = held
        self.loading, self.go_on = threading.Event(), threading.Event()
        self.models: list[Model] = []

    def __call__(self, folder: Path) -> Model:
        if folder.name == self.held:
            self.loading.set()
            assert self.go_on.wait(10)
        self.models.append(Model(folder))
        return self.models[-1]


def states(servable: Servable[Model]) -> list[tuple[int, str]]:
    return [(state.number, state.state) for state in servable.states()]


@pytest.fixture
def reports() -> list[str]:
    return []


@pytest.fixture
def servable(tmp_path: Path, reports: list[str]) -> Servable[Model]:
    return Servable("m", tmp_path / "m", Model, reports.append)


def test_nothing_is_served_before_a_version_is_there(servable: Servable[Model], reports: list[str]):
    servable.poll()
    servable.poll()
    assert servable.states() == []
    assert not servable.wait(0)
    assert len(reports) == 1 and "waiting" in reports[0]
    with pytest.raises(ServableNotFound, match=r"Latest\(m\)"):
        answer(servable)


def test_the_newest_version_is_loaded_and_other_names_are_ignored(servable: Servable[Model]):
    for name in ("9", "10", ".11", "12.tmp", "-13", "latest", "١٤", str(2**63)):
        publish(servable.base_path, name, f"from {name}")
    (servable.base_path / "15").write_text("a file")
    servable.poll()
    assert servable.wait(0)
    assert states(servable) == [(10, "AVAILABLE")]
    assert answer(servable) == answer(servable, 10) == (10, "from 10")
    with pytest.raises(ServableNotFound, match=r"Specific\(m, 9\)"):
        answer(servable, 9)


def test_a_new_version_takes_over_and_the_old_one_ends_after_its_last_call(
    servable: Servable[Model],
):
    publish(servable.base_path, "1", "one")
    servable.poll()
    with used(servable) as outer, used(servable) as inner:
        model = outer.model
        publish(servable.base_path, "2", "two")
        servable.poll()
        assert states(servable) == [(2, "AVAILABLE"), (1, "UNLOADING")]
        assert answer(servable) == (2, "two")
        assert outer is inner and model and not model.closed
    assert model.closed
    assert states(servable) == [(2, "AVAILABLE"), (1, "END")]


def test_the_old_version_answers_while_the_new_one_loads(tmp_path: Path):
    load = HeldLoader("2")
    servable = Servable("m", tmp_path, load)
    publish(tmp_path, "1", "one")
    servable.poll()
    publish(tmp_path, "2", "two")
    servable.watch(every_s=0.01)
    assert load.loading.wait(10)
    assert states(servable) == [(2, "LOADING"), (1, "AVAILABLE")]
    assert answer(servable) == (1, "one")
    with pytest.raises(ServableNotFound):
        answer(servable, 2)
    load.go_on.set()
    wait_until(lambda: answer(servable) == (2, "two"), 10, "version 2 takes over")
    servable.stop()


def test_a_version_that_fails_leaves_the_old_one_serving(
    servable: Servable[Model], reports: list[str]
):
    publish(servable.base_path, "1", "one")
    servable.poll()
    publish(servable.base_path, "2", "broken")
    servable.poll()
    servable.poll()
    assert len(reports) == 1 and "version 2 failed to load: this one is broken" in reports[0]
    assert answer(servable) == (1, "one")
    newest = servable.states()[0]
    assert isinstance(newest.error, ValueError)
    assert newest.error.__traceback__ is None  # it would keep all that was loaded
    assert newest == VersionState(2, "END", newest.error)


def test_a_failed_version_is_tried_again_once_its_files_change(servable: Servable[Model]):
    folder = publish(servable.base_path, "1", "broken")
    servable.poll()
    assert states(servable) == [(1, "END")]
    (folder / "answer").write_text("whole by now")
    servable.poll()
    assert answer(servable) == (1, "whole by now")
    assert servable.states() == [VersionState(1, "AVAILABLE", None)]


def test_removing_the_newest_folder_goes_back_and_removing_all_changes_nothing(
    servable: Servable[Model],
):
    one = publish(servable.base_path, "1", "one")
    servable.poll()
    two = publish(servable.base_path, "2", "two")
    servable.poll()
    two.rename(two.with_name(".2"))
    servable.poll()
    assert answer(servable) == (1, "one")
    assert states(servable) == [(2, "END"), (1, "AVAILABLE")]
    one.rename(one.with_name(".1"))
    servable.poll()
    assert answer(servable) == (1, "one")
    two.with_name(".2").rename(two)
    servable.poll()
    assert answer(servable) == (2, "two")


@pytest.mark.parametrize(
    ("policy", "wanted"),
    [
        (latest(2), [9, 10]),
        (every, [3, 9, 10]),
        (specific({3, 10, 11}), [3, 10]),
    ],
)
def test_policies_say_which_versions_are_served(
    servable: Servable[Model], policy: VersionPolicy, wanted: list[int]
):
    for name in ("9", "10", "3"):
        publish(servable.base_path, name, f"from {name}")
    servable.set_source(servable.base_path, policy)
    servable.poll()
    assert states(servable) == [(number, "AVAILABLE") for number in reversed(wanted)]
    assert answer(servable) == (max(wanted), f"from {max(wanted)}")
    assert answer(servable, min(wanted)) == (min(wanted), f"from {min(wanted)}")


def test_another_policy_loads_what_is_new_before_it_lets_go(servable: Servable[Model]):
    for name in ("1", "2", "3"):
        publish(servable.base_path, name, name)
    servable.set_source(servable.base_path, specific({1}))
    servable.poll()
    with used(servable) as version:
        assert version.number == 1
        servable.set_source(servable.base_path, specific({2, 3}))
        servable.poll()
        assert states(servable) == [(3, "AVAILABLE"), (2, "AVAILABLE"), (1, "UNLOADING")]
    assert states(servable)[-1] == (1, "END")
    servable.set_source(servable.base_path, specific({7}))  # isn't there: nothing changes
    servable.poll()
    assert states(servable)[:2] == [(3, "AVAILABLE"), (2, "AVAILABLE")]


def test_a_policy_that_comes_while_a_version_loads_holds_at_once(tmp_path: Path):
    load = HeldLoader("2")
    servable = Servable("m", tmp_path, load)
    publish(tmp_path, "1", "one")
    servable.poll()
    publish(tmp_path, "2", "two")
    look = threading.Thread(target=servable.poll)  # as yet, only the newest is wanted
    look.start()
    assert load.loading.wait(10)
    servable.set_source(tmp_path, specific({1}))
    load.go_on.set()
    look.join()
    assert answer(servable, 1) == (1, "one")
    servable.poll()
    assert states(servable) == [(2, "END"), (1, "AVAILABLE")]


def test_dropped_while_it_loads_and_while_it_is_used(tmp_path: Path):
    load = HeldLoader("1")
    servable = Servable("m", tmp_path, load, policy=every)
    for name in ("1", "2"):
        publish(tmp_path, name, name)
    servable.watch(every_s=0.01)
    assert load.loading.wait(10)
    with used(servable) as version:
        servable.drop()
        load.go_on.set()
        wait_until(lambda: states(servable) == [(2, "UNLOADING"), (1, "END")], 10, "it is dropped")
        assert version.number == 2 and version.model and not version.model.closed
        with pytest.raises(ServableNotFound):
            answer(servable)
    assert states(servable) == [(2, "END"), (1, "END")]
    assert [model.closed for model in load.models] == [True, True]


def test_a_version_that_failed_is_tried_again_as_often_as_allowed(
    tmp_path: Path, reports: list[str]
):
    loads: list[Path] = []

    def load(folder: Path) -> Model:
        loads.append(folder)
        return Model(folder)

    retried = Servable("m", tmp_path, load, reports.append, retries=2, retry_interval_s=-1)
    folder = publish(tmp_path, "1", "broken")
    for _ in range(5):
        retried.poll()
    assert len(loads) == 3 and len(reports) == 3
    (folder / "answer").write_text("repaired")  # other files: counted anew
    retried.poll()
    assert answer(retried) == (1, "repaired")


def test_a_version_that_failed_is_not_tried_again_before_its_time(tmp_path: Path):
    loads: list[Path] = []

    def load(folder: Path) -> Model:
        loads.append(folder)
        return Model(folder)

    patient = Servable("m", tmp_path, load, retries=2, retry_interval_s=3600)
    publish(tmp_path, "1", "broken")
    patient.poll()
    patient.poll()
    assert len(loads) == 1
