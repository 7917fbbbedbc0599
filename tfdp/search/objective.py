"""What a search looks for: the metric of an evaluation, and whether more of it is better."""

from __future__ import annotations

import dataclasses
import math
from typing import Literal

from tfdp.errors import BadInput

Direction = Literal["max", "min"]


@dataclasses.dataclass(frozen=True)
class Objective:
    """A metric and a direction.

    Args:
        name: of the metric, as an evaluation names it.
        direction: "max" if more is better.
    """

    name: str
    direction: Direction

    @classmethod
    def parse(cls, text: str) -> Objective:
        """Parses ``NAME:max`` or ``NAME:min``.

        Raises:
            BadInput: if it is neither.
        """
        name, _, direction = text.rpartition(":")
        if name and direction == "max":
            return cls(name, "max")
        if name and direction == "min":
            return cls(name, "min")
        raise BadInput(
            f"--objective is {text}: it has to be NAME:max or NAME:min of a metric of the "
            "evaluation, such as accuracy:max or loss:min"
        )

    def rank(self, value: float) -> float:
        """Returns a number that is the smaller the better the value is."""
        return -value if self.direction == "max" else value

    def __str__(self) -> str:
        return f"{self.name}:{self.direction}"


def is_number(value: object) -> bool:
    """Returns whether a metric's value can be an objective's: a finite number."""
    return isinstance(value, (int, float)) and math.isfinite(value)
