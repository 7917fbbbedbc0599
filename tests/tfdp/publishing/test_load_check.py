from __future__ import annotations

import numpy as np
import pytest

from tfdp.publishing import load_check


@pytest.mark.parametrize(
    ("differences", "are_close"),
    [((0.01, 0.02), True), ((0, 3), False), ((30, 0), False)],  # of a large, of a small number
)
def test_outputs_are_close_if_they_differ_by_rounding(
    differences: tuple[float, float], are_close: bool
) -> None:
    expected = np.array([1e5, -3e4, 0.01, np.nan], np.float32)
    actual = expected + np.array([differences[0], 0, differences[1], 0], np.float32)
    assert load_check._are_close(actual, expected, 1e-4) is are_close


@pytest.mark.parametrize(
    "actual", [np.array([1, 3]), np.array([1]), np.array([1, 2], np.int32), np.array([1.0, 2.0])]
)
def test_whole_numbers_shapes_and_dtypes_have_to_be_equal(actual: np.ndarray) -> None:
    assert not load_check._are_close(actual, np.array([1, 2]), 1.0)
