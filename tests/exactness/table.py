"""Writes the table of ``docs/exactness.md``: every case, and its largest difference on N.

``python -m tests.exactness.table`` computes all cases with plain Keras in one process, on 2 and 4
replicas in one process, and on 2 and 3 workers, one group after the other; it takes minutes. It
ends with 1 if a difference is larger than the case's tolerance.
"""

from __future__ import annotations

import re
import sys
import tempfile
from pathlib import Path

import keras
import tensorflow as tf

from tests.exactness.groups import Group, largest_difference
from tests.exactness.run import CASES, tolerance

PAGE = Path(__file__).parents[2] / "docs" / "exactness.md"
GROUPS = [Group(1, replicas=2), Group(1, replicas=4), Group(2), Group(3)]
LIMIT_S = 3600.0


def main() -> int:
    """Computes, writes, and tells whether all is as it has to be."""
    with tempfile.TemporaryDirectory() as folder:
        results = {}
        for group in [Group(0), *GROUPS]:
            print(f"{group.name}: {len(CASES)} cases", file=sys.stderr, flush=True)
            with group.start(list(CASES), Path(folder) / group.name, LIMIT_S) as running:
                running.wait()
                results[group.name] = {case: running.results(case)[0] for case in CASES}
    alone = results["plain Keras"]
    rows, is_exact = [], True
    for case in sorted(CASES):
        apart = [largest_difference(results[group.name][case], alone[case])[0] for group in GROUPS]
        is_exact &= max(apart) <= tolerance(case)
        rows.append(f"| `{case}` | " + " | ".join(f"{each:.1e}" for each in apart) + " |")
    heads = " | ".join(group.name for group in GROUPS)
    table = [f"| case | {heads} |", "|---|" + "---|" * len(GROUPS), *rows]
    versions = f"TensorFlow {tf.__version__}, Keras {keras.__version__}, on CPUs."
    write_table(PAGE, [versions, "", *table])
    return 0 if is_exact else 1


def write_table(page: Path, lines: list[str]) -> None:
    """Writes lines between the marks of a page."""
    page.write_text(
        re.sub(
            r"(<!-- table -->\n).*(<!-- end -->)",
            lambda match: match[1] + "\n".join(lines) + f"\n{match[2]}",
            page.read_text(),
            flags=re.S,
        )
    )


if __name__ == "__main__":
    sys.exit(main())
