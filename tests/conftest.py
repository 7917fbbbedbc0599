"""The longest files come first: of two processes, none is left with a long one in the end.

So tests of servers, which are the most sensitive to a busy machine, have no training beside them.
"""

from __future__ import annotations

import gc

import pytest

gc.disable()

LONGEST_FIRST = [
    *("test_exactness", "test_train", "test_faults", "test_fit", "test_structures", "test_chaos"),
    *("test_standstill", "test_elastic", "test_kubernetes", "test_slurm", "test_demo"),
    *(
        "test_search",
        "test_predict",
        "test_slots",
        "test_evaluate",
        "test_network",
        "test_connecting",
        "test_callbacks",
        "test_publish",
    ),
    *("test_workdir", "test_train_records", "test_spares", "test_launch", "test_frozen"),
]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    def place(item: pytest.Item) -> int:
        is_long = item.path.parent.name == "processes" and item.path.stem in LONGEST_FIRST
        return LONGEST_FIRST.index(item.path.stem) if is_long else len(LONGEST_FIRST)

    items.sort(key=place)


def pytest_collection_finish() -> None:
    """Lets garbage collection start here, and not search what was imported until now."""
    gc.freeze()
    gc.enable()
