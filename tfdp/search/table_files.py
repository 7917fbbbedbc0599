"""The table of a search as files: ``search.json``, ``trials.csv``, and what took how long.

Equal searches have equal ``search.json`` and ``trials.csv``, byte for byte: nothing in them depends
on time, on slots, or on where the search lies. What does is in ``times.csv``.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from tfdp.errors import BadInput
from tfdp.files import write_whole
from tfdp.search.table import Row, Table

# Columns of trials.csv after those of the parameters.
_RESULTS: Final = ("steps", "examples", "objective", "weights_sha256", "failure")


@dataclasses.dataclass(frozen=True)
class TrialTimes:
    """What depends on time, of one trial.

    Args:
        number: of the trial.
        training_s: seconds for which its run was training, all starts together.
        restarts: how often it was started again after a fault; pauses don't count.
        slot: name of the slot in which it ran last.
    """

    number: int
    training_s: float = 0.0
    restarts: int = 0
    slot: str = ""


def write(
    table: Table, workdir: Path, about: Mapping[str, Any], *, is_finished: bool = False
) -> None:
    """Writes ``WORKDIR/search.json`` and ``WORKDIR/trials.csv``, each by one rename.

    Args:
        table: all trials.
        workdir: of the search.
        about: what the search was asked for (space, seed, …), without times and absolute paths.
        is_finished: whether the search has come to its end.
    """
    write_whole(workdir / "search.json", _as_json(table, about, is_finished))
    write_whole(workdir / "trials.csv", _as_csv(table))


def read_about(workdir: Path) -> dict[str, Any]:
    """Returns the ``about`` of the search that was written to a workdir; empty without one.

    Raises:
        BadInput: if ``search.json`` is none of ours, or is missing beside trials.
    """
    path = workdir / "search.json"
    if not path.exists():
        if any(workdir.glob("trials/*/trial.json")):
            raise BadInput(
                f"{path} is missing, which says of which search {workdir / 'trials'} are: restore "
                "it, remove these trials, or use another --workdir"
            )
        return {}
    try:
        return dict(json.loads(path.read_text())["about"])
    except (ValueError, KeyError, TypeError) as error:
        raise BadInput(
            f"{path} is not a search's ({error!r}): restore it, or use another --workdir"
        ) from None


def write_times(times: Iterable[TrialTimes], workdir: Path) -> None:
    """Writes ``WORKDIR/times.csv`` by one rename."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(field.name for field in dataclasses.fields(TrialTimes))
    for each in sorted(times, key=lambda each: each.number):
        writer.writerow([each.number, f"{each.training_s:.3f}", each.restarts, each.slot])
    write_whole(workdir / "times.csv", text.getvalue())


def read_times(workdir: Path) -> dict[int, TrialTimes]:
    """Returns what ``write_times`` wrote, by trial number, so that a later process can add to it.

    A file that is missing, or that somebody has changed into something else, counts as empty: no
    result depends on it.
    """
    try:
        lines = list(csv.DictReader(io.StringIO((workdir / "times.csv").read_text())))
        times = [
            TrialTimes(
                number=int(line["number"]),
                training_s=float(line["training_s"]),
                restarts=int(line["restarts"]),
                slot=line["slot"],
            )
            for line in lines
        ]
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    return {each.number: each for each in times}


def _as_json(table: Table, about: Mapping[str, Any], is_finished: bool) -> str:
    best = table.best
    content = {
        "objective": table.objective.name,
        "direction": table.objective.direction,
        "about": about,
        "finished": is_finished,
        "best": None if best is None else _best_as_json(best),
        "trials": [_row_as_json(row) for row in table.rows],
    }
    return json.dumps(_plain(content), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _best_as_json(row: Row) -> dict[str, Any]:
    names = ("number", "params", "objective", "weights_sha256", "folder")
    return {name: getattr(row, name) for name in names}


def _row_as_json(row: Row) -> dict[str, Any]:
    return {field.name: getattr(row, field.name) for field in dataclasses.fields(row)}


def _plain(value: Any) -> Any:
    """Returns a value as JSON has it: null for a number that is not finite."""
    if isinstance(value, Mapping):
        return {_printable(str(name)): _plain(each) for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    if isinstance(value, np.generic):
        return _plain(value.item())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, (bool, int)):
        return value
    return _printable(str(value))  # such as a path in HParams


def _printable(text: str) -> str:
    """Returns text that UTF-8 can encode: a failure may quote bytes that are no text."""
    return text.encode(errors="backslashreplace").decode()


def _as_csv(table: Table) -> str:
    params = parameter_names(table)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    # As in Optuna's own data frames, so that a parameter may be called "steps".
    columns = [f"params_{name}" for name in params]
    writer.writerow(["number", "state", *columns, *_RESULTS])
    for row in table.rows:
        values = [row.params.get(name, "") for name in params]
        results = [_plain(getattr(row, name)) for name in _RESULTS]
        results = ["" if value is None else value for value in results]
        writer.writerow([row.number, row.state, *map(_cell, [*values, *results])])
    return text.getvalue()


def _cell(value: Any) -> str:
    return _printable(" ".join(str(value).split()))


def parameter_names(table: Sequence[Row]) -> list[str]:
    """Returns the names of all parameters, in the order in which trials first have them."""
    return list(dict.fromkeys(name for row in table for name in row.params))
