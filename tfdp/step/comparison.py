"""How arrays that are computed on parts of a batch make those of the whole batch."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Literal

import numpy as np

from tfdp.step.rules import Extreme, Kind, Queue
from tfdp.step.share import Combination

Arrays = list[np.ndarray]

# Relative differences that are taken for rounding: by the largest value of a tensor, also where
# layers compute with 16 bits, and by the largest value of all tensors.
_TOLERANCE, _TOLERANCE_OF_16_BITS, _FLOOR = 2e-3, 5e-2, 1e-5


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Compares a whole batch with its parts.

    Args:
        sizes: number of examples of each part.
        has_16_bits: whether some arrays were computed with 16 bits.
    """

    sizes: tuple[int, ...]
    has_16_bits: bool = False

    @property
    def _fractions(self) -> list[float]:
        return [size / sum(self.sizes) for size in self.sizes]

    def are_near(self, values: Arrays, expected: Arrays, rounding: float = 0.0) -> bool:
        """Returns whether arrays are equal but for rounding, which may have a known size."""
        if any(a.shape != b.shape for a, b in zip(values, expected, strict=True)):
            return False
        tolerance = _TOLERANCE_OF_16_BITS if self.has_16_bits else _TOLERANCE
        largest = max((np.abs(each).max(initial=0) for each in expected), default=0.0)
        return all(
            np.abs(a - b).max(initial=0)
            <= max(_FLOOR * largest, tolerance * np.abs(b).max(initial=0), rounding)
            for a, b in zip(values, expected, strict=True)
        )

    def rule(self, whole: Arrays, parts: Sequence[Arrays]) -> Combination | None:
        """Returns how arrays of the parts make those of the whole batch; None if they don't."""
        shapes = [each.shape for each in whole]
        if any([each.shape for each in part] != shapes for part in parts):
            return None
        combinations: tuple[Combination, ...] = ("mean", "sum", "divided")
        for combination in combinations:
            weights = {
                "mean": self._fractions,
                "sum": [1.0] * len(parts),
                "divided": [len(parts) * each for each in self._fractions],
            }[combination]
            if self.are_near(weighted_sums(parts, weights), whole):
                return combination
        return None

    def state(
        self, before: np.ndarray, whole: np.ndarray, parts: Arrays, is_whole_number: bool
    ) -> tuple[Kind, float]:
        """Returns how values that a step assigned to a variable combine.

        Changes are compared: a moving average changes by a small fraction of its value.

        Args:
            before: the variable's value before the step.
            whole: its value after a step on the whole batch.
            parts: its values after a step on each part.
            is_whole_number: whether the variable has an integer dtype.

        Returns:
            ``State.kind`` and ``State.keeps``.
        """
        change, *changes = (each - before for each in (whole, *parts))
        rounding = 8 * np.finfo(np.float32).eps * np.abs(before).max(initial=0)

        def is_change(value: np.ndarray) -> bool:
            return self.are_near([value], [change], rounding)

        if all(map(is_change, changes)):
            return "same", 1.0
        queues: tuple[Queue, ...] = ("rows_first", "rows_last")
        for queue in queues:
            if self._is_queue(queue, before, whole, parts):
                return queue, 1.0
        (mean,) = weighted_sums([[each] for each in changes], self._fractions)
        if is_change(mean):
            return "mean", 1.0
        total = np.sum(changes, axis=0)
        # What a sum loses of its earlier value, each part has lost.
        square = (len(parts) - 1) * float((before * before).sum())
        loses = float(((change - total) * before).sum()) / square if square else 0.0
        keeps = round(1 - loses, 0 if is_whole_number else 5)  # as people write it
        if 0 <= keeps <= 1 and is_change(total + (len(parts) - 1) * (1 - keeps) * before):
            return "sum", keeps
        return "unknown", 1.0

    def extreme(self, whole: np.ndarray, parts: Arrays) -> Literal["same", "unknown"] | Extreme:
        """Returns whether parts have the whole batch's value, or its maximum or minimum has."""
        if all(self.are_near([part], [whole]) for part in parts):
            return "same"
        if self.are_near([np.max(parts, axis=0)], [whole]):
            return "maximum"
        return "minimum" if self.are_near([np.min(parts, axis=0)], [whole]) else "unknown"

    def _is_queue(self, queue: Queue, before: np.ndarray, whole: np.ndarray, parts: Arrays) -> bool:
        count = sum(self.sizes)
        if not before.ndim or len(before) < count:
            return False
        if queue == "rows_first":
            rows = [part[:size] for part, size in zip(parts, self.sizes, strict=True)]
            expected = np.concatenate([*rows, before[: len(before) - count]])
        else:
            rows = [part[len(part) - size :] for part, size in zip(parts, self.sizes, strict=True)]
            expected = np.concatenate([before[count:], *rows])
        return self.are_near([expected], [whole])


def weighted_sums(parts: Sequence[Arrays], weights: Sequence[float]) -> Arrays:
    """Returns the weighted sum over parts of each of their arrays."""
    return [
        np.sum([weight * each for weight, each in zip(weights, column, strict=True)], axis=0)
        for column in zip(*parts, strict=True)
    ]
