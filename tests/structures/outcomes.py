"""What came of structures on a group of processes, beside plain Keras."""

from __future__ import annotations

import dataclasses
import enum
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tests.exactness.groups import Group, Running, largest_difference
from tests.structures.registry import STRUCTURES

START_S = 60.0  # for a group's processes to start
EACH_S = 30.0  # for one structure, on average
Results = dict[str, np.ndarray]
# Lines of tfdp that warn of no difference: who has met, how long it takes.
NEWS = r"worker|waiting|counting|each of the \d+ workers reads"


class Kind(enum.StrEnum):
    """How a structure ends on N workers."""

    EQUAL = "equal"  # to plain Keras, within rounding
    RANDOM = "random"  # it trains, and workers draw different numbers
    REFUSED = "refused"  # before the first step, with a reason
    WARNED = "warned"  # of the difference, before it
    DIFFERS = "differs"  # and nothing is said
    FAILS = "fails"  # with an error that is no refusal


GOOD = {Kind.EQUAL, Kind.RANDOM, Kind.REFUSED, Kind.WARNED}


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a structure ends on N workers, and the figure or words that say so."""

    kind: Kind
    details: str

    def __str__(self) -> str:
        if self.kind in (Kind.EQUAL, Kind.RANDOM):
            return self.details
        text = re.sub(r"\s+", " ", self.details).replace("|", "/")
        text = text if len(text) < 120 else text[:115].rpartition(" ")[0] + " …"
        word = self.kind.value if self.kind in GOOD else f"**{self.kind.value}**"
        return f"{word}: {text}"


@dataclasses.dataclass(frozen=True)
class Measured:
    """What the processes of a group found for one structure.

    Args:
        results: of each process; empty if one has none.
        said: lines for people, by the chief.
        error: why there are no results.
    """

    results: list[Results]
    said: list[str]
    error: str = ""


def measure(group: Group, names: Sequence[str], folder: Path) -> dict[str, Measured]:
    """Computes structures on a group, which starts anew after one that harmed it."""
    found: dict[str, Measured] = {}
    rest = list(names)
    while rest:
        print(f"{group.name}: {len(rest)} structures", file=sys.stderr, flush=True)
        at = folder / f"{group.name} {len(rest)}"
        limit_s = START_S + EACH_S * len(rest)
        with group.start(rest, at, limit_s, module="tests.structures.run") as running:
            running.wait()
            for i, process in enumerate(running.processes):
                (at / f"{i}.log").write_text(process.output)
            begun = re.findall(r"^structure (\w+)$", running.processes[0].output, re.MULTILINE)
            for name in begun or rest[:1]:
                found[name] = _measured(running, name)
        rest = [name for name in rest if name not in found]
    return found


def _measured(running: Running, name: str) -> Measured:
    folders = [running.folder / str(i) for i in range(len(running.processes))]
    own = rf"^structure {name}$(.*?)(?=^structure \w+$|\Z)"
    outputs = [re.findall(own, each.output, re.M | re.S) for each in running.processes]
    text = "".join(outputs[0])
    said = re.findall(rf"^tfdp: (?!{NEWS})(.*)$", text, re.MULTILINE)
    errors = [path.read_text() for each in folders if (path := each / f"{name}.error").exists()]
    if not errors and all((each / f"{name}.npz").exists() for each in folders):
        return Measured(running.results(name), said)
    errors.sort(key=lambda error: error.startswith("PeerFailed"))  # which tells of another's error
    lines = [line for line in text.splitlines() if line.strip()]
    return Measured([], said, errors[0] if errors else f"ended: {lines[-1] if lines else ''}")


def outcome(name: str, measured: Measured, alone: Results) -> Outcome:
    """Compares what N workers found with what plain Keras found."""
    if measured.error:
        kind, _, reason = measured.error.partition(": ")
        if kind == "refused":
            return Outcome(Kind.REFUSED, reason)
        return Outcome(Kind.FAILS, measured.error)
    if STRUCTURES[name].is_random:
        return _of_random(measured.results)
    apart = max(largest_difference(each, alone) for each in measured.results)
    if apart[0] <= STRUCTURES[name].tolerance:
        return Outcome(Kind.EQUAL, f"{apart[0]:.0e}")
    difference = f"{apart[0]:.0e} in {apart[1]}" if np.isfinite(apart[0]) else apart[1]
    if measured.said:
        return Outcome(Kind.WARNED, f"{apart[0]:.0e}; {measured.said[-1]}")
    return Outcome(Kind.DIFFERS, difference)


def _of_random(results: list[Results]) -> Outcome:
    def kept(one: Results, is_draw: bool) -> Results:
        return {key: value for key, value in one.items() if key.startswith("draws") == is_draw}

    draws = [kept(one, is_draw=True) for one in results]
    if not all(draws):
        return Outcome(Kind.FAILS, "drew nothing")
    rows = [row.tobytes() for one in draws for draw in one.values() for row in draw]
    if len(set(rows)) < len(rows):
        return Outcome(Kind.DIFFERS, f"{len(rows) - len(set(rows))} of {len(rows)} draws are equal")
    first, *others = (kept(one, is_draw=False) for one in results)
    if any(largest_difference(other, first)[0] for other in others):
        return Outcome(Kind.DIFFERS, "workers end with different weights")
    of_history = {key: value for key, value in first.items() if key.startswith("history")}
    named = [key for key in of_history if key.endswith("/loss")]  # a model may have none
    losses = of_history[(named or list(of_history))[0]]
    if not np.isfinite(losses).all() or losses[-1] > losses[0] * 1.1:
        return Outcome(Kind.DIFFERS, f"it does not train: losses {losses.round(3).tolist()}")
    return Outcome(Kind.RANDOM, "random")
