"""Writes the table of ``docs/tried.md``: every structure, and what came of it on N workers.

``python -m tests.structures.table`` computes all structures with plain Keras in one process, and
with tfdp on one, two and three workers, one group after the other; it takes many minutes. With
names as arguments, it prints these rows and writes nothing. It ends with 1 if a structure fails, or
if one differs without a word.
"""

from __future__ import annotations

import sys
import tempfile
from collections import Counter
from pathlib import Path

import keras
import tensorflow as tf

from tests.exactness.groups import Group
from tests.exactness.table import write_table
from tests.structures.outcomes import GOOD, Outcome, measure, outcome
from tests.structures.registry import STRUCTURES
from tests.structures.run import NAMES

PAGE = Path(__file__).parents[2] / "docs" / "tried.md"
GROUPS = {Group(1): "1 worker", Group(2): "2 workers", Group(3): "3 workers"}


def main(names: list[str]) -> int:
    """Computes, writes, and tells whether all is as it has to be."""
    chosen = names or NAMES
    with tempfile.TemporaryDirectory() as folder:
        alone = measure(Group(0), chosen, Path(folder))
        for name, each in alone.items():
            assert not each.error, f"plain Keras fails in {name}: {each.error}"
        outcomes = {
            group: {
                name: outcome(name, each, alone[name].results[0])
                for name, each in measure(group, chosen, Path(folder)).items()
            }
            for group in GROUPS
        }
    rows = [row(name, [outcomes[group][name] for group in GROUPS]) for name in chosen]
    if names:
        print(*rows, sep="\n")
    else:
        write_table(PAGE, [*counts(outcomes), "", *heads(), *rows])
    every = [each for of_group in outcomes.values() for each in of_group.values()]
    return 0 if all(each.kind in GOOD for each in every) else 1


def counts(outcomes: dict[Group, dict[str, Outcome]]) -> list[str]:
    """How often each kind of outcome is in each column, as a table."""
    kinds = {
        group: Counter(each.kind.value for each in of_group.values())
        for group, of_group in outcomes.items()
    }
    found = sorted({kind for of_group in kinds.values() for kind in of_group})
    return [
        f"TensorFlow {tf.__version__}, Keras {keras.__version__}, on CPUs: "
        f"{len(STRUCTURES)} structures.",
        "",
        "| workers | " + " | ".join(found) + " |",
        "|---|" + "---|" * len(found),
        *(
            f"| {GROUPS[group]} | " + " | ".join(str(of_group[kind]) for kind in found) + " |"
            for group, of_group in kinds.items()
        ),
    ]


def heads() -> list[str]:
    columns = ["structure", "source", "what it asks for", *GROUPS.values()]
    return ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]


def row(name: str, outcomes: list[Outcome]) -> str:
    made = STRUCTURES[name]
    cells = [f"`{name}`", made.source, made.asks, *map(str, outcomes)]
    return "| " + " | ".join(cells) + " |"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
