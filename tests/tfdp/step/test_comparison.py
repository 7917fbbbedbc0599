"""How arrays of parts make those of a whole batch; the arrays are made up by the rules' meaning."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tfdp.step.comparison import Comparison

ROWS = np.random.default_rng(5).normal(size=(12, 4))
PARTS = [ROWS[:7], ROWS[7:]]
OF_PARTS = Comparison((7, 5))


@pytest.mark.parametrize(
    ("of_rows", "rule"),
    [
        (lambda rows, replicas: rows.mean(axis=0), "mean"),
        (lambda rows, replicas: rows.sum(axis=0), "sum"),
        (lambda rows, replicas: rows.mean(axis=0) / replicas, "divided"),
        (lambda rows, replicas: rows.mean(axis=0) ** 2, None),
        (lambda rows, replicas: rows.std(axis=0), None),
        (lambda rows, replicas: rows, None),  # of other shapes
        (lambda rows, replicas: np.float64(3.0), "mean"),  # a regularizer, for example
    ],
)
def test_a_rule_is_found(of_rows: Any, rule: str | None) -> None:
    parts = [[of_rows(part, 2)] for part in PARTS]
    assert OF_PARTS.rule([of_rows(ROWS, 1)], parts) == rule


def test_parts_that_computed_fewer_things_have_no_rule() -> None:
    assert OF_PARTS.rule([ROWS[0], ROWS[1]], [[ROWS[0], ROWS[1]], [ROWS[0]]]) is None


def test_sixteen_bits_differ_by_more() -> None:
    whole, parts = [np.full(3, 1.02)], [[np.ones(3)], [np.ones(3)]]
    assert OF_PARTS.rule(whole, parts) is None
    assert Comparison((7, 5), has_16_bits=True).rule(whole, parts) == "mean"


BEFORE = np.random.default_rng(6).normal(size=(20, 4))


@pytest.mark.parametrize(
    ("after", "before", "rule"),
    [
        (lambda rows, old: 0.5 * old, BEFORE[0], ("same", 1.0)),
        (lambda rows, old: 0.9 * old + 0.1 * rows.mean(axis=0), BEFORE[0], ("mean", 1.0)),
        (lambda rows, old: 0.9999 * old + 1e-4 * rows.mean(axis=0), BEFORE[0], ("mean", 1.0)),
        (lambda rows, old: old + rows.sum(axis=0), BEFORE[0], ("sum", 1.0)),
        (lambda rows, old: 0.999 * old + 0.001 * rows.sum(axis=0), BEFORE[0], ("sum", 0.999)),
        (lambda rows, old: rows.sum(axis=0), BEFORE[0], ("sum", 0.0)),
        (lambda rows, old: old + len(rows), np.float64(90000), ("sum", 1.0)),
        (lambda rows, old: np.vstack([rows, old[: -len(rows)]]), BEFORE, ("rows_first", 1.0)),
        (lambda rows, old: np.vstack([old[len(rows) :], rows]), BEFORE, ("rows_last", 1.0)),
        (lambda rows, old: rows.std(axis=0), BEFORE[0], ("unknown", 1.0)),
        (lambda rows, old: old * rows.mean(axis=0), BEFORE[0], ("mean", 1.0)),
    ],
)
def test_a_state_is_recognized(after: Any, before: np.ndarray, rule: tuple[str, float]) -> None:
    parts = [after(part, before) for part in PARTS]
    is_whole_number = before.ndim == 0
    assert OF_PARTS.state(before, after(ROWS, before), parts, is_whole_number) == rule


@pytest.mark.parametrize(
    ("of_rows", "kind"),
    [
        (lambda rows: rows.max(axis=0), "maximum"),
        (lambda rows: rows.min(axis=0), "minimum"),
        (lambda rows: np.ones(4), "same"),
        (lambda rows: np.median(rows, axis=0), "unknown"),
    ],
)
def test_an_extreme_is_recognized(of_rows: Any, kind: str) -> None:
    assert OF_PARTS.extreme(of_rows(ROWS), [of_rows(part) for part in PARTS]) == kind
