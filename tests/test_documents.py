"""Documents agree with the code: pictures, tables, order of reading, versions, make targets."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from tests.running import ROOT, run
from tests.test_rules import MAY_IMPORT, documents, imported_modules

ARCHITECTURE = (ROOT / "docs" / "architecture.md").read_text()
ROOMS = {  # rooms of serving are described in words
    room: set(below) for room, below in MAY_IMPORT.items() if not room.startswith("serving")
}
# Stations 6 and 7 run inside of station 5.
WAYS_AHEAD = {(5, 6), (5, 7)}


def section(title: str) -> str:
    """A section of the page, without its heading."""
    return re.split(r"^## ", ARCHITECTURE.partition(f"## {title}\n")[2], flags=re.MULTILINE)[0]


def reachable(room: str) -> set[str]:
    below = ROOMS[room]
    return below.union(*(reachable(each) for each in below))


def direct(rooms: dict[str, set[str]]) -> set[tuple[str, str]]:
    """The arrows that no longer way replaces."""
    return {
        (room, each)
        for room, below in rooms.items()
        for each in below
        if not any(each in reachable(other) for other in below - {each})
    }


def test_the_picture_of_rooms_shows_who_may_import_whom() -> None:
    block = section("The rooms").partition("```mermaid\n")[2].partition("```")[0]
    arrows = re.findall(r"^ *(\w+) --> (\w+)$", block, re.MULTILINE)
    shown = {tuple(room.replace("_", ".") for room in arrow) for arrow in arrows}
    assert shown == direct(ROOMS)


def test_the_table_of_rooms_lists_who_may_import_whom() -> None:
    def full_name(room: str) -> str:
        return f"tfdp.{room}" if f"tfdp.{room}" in ROOMS else room

    rows = re.findall(r"^\| `([\w.]+)` \|.*\| ([\w., ]*)\|$", section("The rooms"), re.MULTILINE)
    listed = {
        full_name(room): {*map(full_name, re.findall(r"[\w.]+", below))} for room, below in rows
    }
    assert listed == ROOMS
    assert [full_name(room) for room, _ in rows] == list(ROOMS), "rows are in the table's order"


def test_the_code_can_be_read_in_the_order_of_the_page() -> None:
    stations = re.findall(
        r"^(\d+)\. (.*?)(?=^\d+\. |\n\n)", section("One example's way"), re.M | re.S
    )
    assert [int(number) for number, _ in stations] == list(range(1, 11))
    station_of = {
        path.removesuffix(".py").replace("/", "."): int(number)
        for number, text in stations
        for path in re.findall(r"\]\(\.\./(tfdp/\w+/\w+\.py)\)", text)
    }
    assert len(station_of) >= 20
    ahead = {
        f"{module} ({station}) imports {imported} ({station_of[imported]})"
        for module, station in station_of.items()
        for imported in imported_modules(module) & station_of.keys()
        if station_of[imported] > station and (station, station_of[imported]) not in WAYS_AHEAD
    }
    assert not ahead


def test_versions_are_the_same_everywhere() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    package = re.search(r'^__version__ = "(.+)"$', (ROOT / "tfdp/__init__.py").read_text(), re.M)
    newest = re.search(r"^## \[(\d.*?)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert package is not None
    assert newest is not None
    assert package[1] == newest[1] == project


def test_the_page_on_versions_names_the_checkpoint_format() -> None:
    store = (ROOT / "tfdp" / "checkpoints" / "store.py").read_text()
    number = re.search(r"^FORMAT = (\d+)$", store, re.MULTILINE)
    assert number is not None
    page = (ROOT / "docs" / "versioning.md").read_text()
    row = rf"^\| {re.escape(project_minor())} \| {number[1]} \|"
    assert re.search(row, page, re.MULTILINE), f"no row matches {row}"


def project_minor() -> str:
    """The project's version without its last number."""
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    return str(version).rpartition(".")[0]


@pytest.mark.parametrize("goal", [[], ["help"]], ids=["alone", "help"])
def test_make_lists_all_targets(goal: list[str]) -> None:
    phony = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert phony is not None
    listed = re.findall(r"^make (\w+) +\S", run(["make", "--no-print-directory", *goal]), re.M)
    assert listed
    assert set(listed) == set(phony[1].split())


@pytest.mark.parametrize("document", documents(), ids=lambda path: str(path.relative_to(ROOT)))
def test_files_that_documents_name_exist(document: Path) -> None:
    folders = "|".join(("tfdp", "serving", "cluster", "tests", "benchmarks", "deploy", "docs"))
    named = re.findall(rf"`((?:{folders})/[\w./-]*)`", document.read_text())
    assert {name for name in named if not (ROOT / name).exists()} == set()
