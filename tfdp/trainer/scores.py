"""What ``tfdp.evaluate`` returns: a dict of scores that can be used as Keras's list, too."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np


class Scores(dict[str, Any]):
    """Scores of a model by name, which can be used as the result of Keras's ``Model.evaluate``.

    It is a dict: ``scores["loss"]``, ``scores.items()``, ``"loss" in scores``, ``json.dumps``. But
    it iterates over values and not names, as Keras's list does: ``loss, accuracy = scores``,
    ``scores[1]``, ``list(scores)``. A single score also is the number that Keras returns then:
    ``float(scores)``, ``scores < 0.5``, ``f"{scores:.3f}"``.
    """

    def __iter__(self) -> Iterator[Any]:  # the values
        return iter(self.values())

    def __reversed__(self) -> Iterator[Any]:
        return reversed(self.values())

    def __getitem__(self, key: Any) -> Any:
        """Returns the score of a name, or the scores at a place or slice of Keras's list."""
        if isinstance(key, slice) or hasattr(key, "__index__"):
            return list(self.values())[key]
        return super().__getitem__(key)

    def __missing__(self, key: Any) -> Any:
        raise KeyError(
            f"{key!r} is none of the scores {', '.join(self.keys())} (a loop over scores gives "
            "their values: use scores.items() for their names)"
        )

    def as_keras(self) -> Any:
        """Returns what Keras returns: a list of the values, or the value if there is only one."""
        values = list(self.values())
        return values[0] if len(values) == 1 else values

    def __float__(self) -> float:
        if len(self) != 1:
            raise TypeError(
                f"there are {len(self)} scores ({', '.join(self.keys())}) and not one: choose one, "
                'for example scores["loss"]'
            )
        return float(self.as_keras())

    def __format__(self, spec: str) -> str:
        return format(float(self), spec) if spec else str(self)

    def __round__(self, digits: int | None = None) -> float:
        return round(float(self), digits)

    def __neg__(self) -> float:
        return -float(self)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self.as_keras(), dtype)


def _as_number(function: Callable[[Any, Any], Any], is_reflected: bool) -> Callable[..., Any]:
    def method(self: Scores, other: Any) -> Any:
        if isinstance(other, Scores):
            other = float(other)
        pair = (other, float(self)) if is_reflected else (float(self), other)
        return function(*pair)

    return method


for _name in ("add", "sub", "mul", "truediv", "lt", "le", "gt", "ge"):
    setattr(Scores, f"__{_name}__", _as_number(getattr(operator, _name), is_reflected=False))
for _name in ("add", "sub", "mul", "truediv"):
    setattr(Scores, f"__r{_name}__", _as_number(getattr(operator, _name), is_reflected=True))
