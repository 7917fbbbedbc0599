"""The longest files come first: of two processes, none is left with a long one in the end."""

from __future__ import annotations

import pytest

LONGEST_FIRST = [
    *("test_exactness", "test_structures", "test_train", "test_faults", "test_fit", "test_demo"),
    *("test_chaos", "test_evaluate", "test_serving", "test_network", "test_launch"),
]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    def place(item: pytest.Item) -> int:
        is_long = item.path.parent.name == "processes" and item.path.stem in LONGEST_FIRST
        return LONGEST_FIRST.index(item.path.stem) if is_long else len(LONGEST_FIRST)

    items.sort(key=place)
