"""The values of ``--search``: fields of ``HParams``, and which of their values are tried."""

from __future__ import annotations

import dataclasses
import math
import re
import types
import typing
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any

from tfdp.errors import BadInput
from tfdp.recipe import parse_value

_FORM = "NAME=LOW..HIGH, NAME=LOW..HIGH:log, NAME=LOW..HIGH:step=STEP or NAME=A|B|C"


@dataclasses.dataclass(frozen=True)
class Range:
    """A field's numbers from ``low`` to ``high``, both included.

    Args:
        name: of the field.
        low: the smallest number, an int for a range of whole numbers.
        high: the largest number, of the same type.
        step: from one number to the next; None for all.
        is_log: whether small numbers are as likely as large ones.
    """

    name: str
    low: float
    high: float
    step: float | None = None
    is_log: bool = False

    def suggest(self, trial: Any) -> Any:
        """Returns the number that Optuna chooses for a trial."""
        if isinstance(self.low, int):
            step = 1 if self.step is None else self.step
            return trial.suggest_int(self.name, self.low, self.high, step=step, log=self.is_log)
        return trial.suggest_float(self.name, self.low, self.high, step=self.step, log=self.is_log)


@dataclasses.dataclass(frozen=True)
class Choices:
    """Some values of a field.

    Args:
        name: of the field.
        values: by what Optuna chooses from: the values themselves if it can store them, or texts.
    """

    name: str
    values: Mapping[Any, Any]

    def suggest(self, trial: Any) -> Any:
        """Returns the value that Optuna chooses for a trial."""
        return self.values[trial.suggest_categorical(self.name, tuple(self.values))]


def parse(recipe: str, fields: Mapping[str, Any], search: Sequence[str]) -> list[Range | Choices]:
    """Parses the values of ``--search``.

    Args:
        recipe: the recipe's name, for messages.
        fields: type of each field of its ``HParams``.
        search: what the user wrote, ``NAME=LOW..HIGH`` or ``NAME=A|B|C``.

    Raises:
        BadInput: if one is malformed, does not fit its field, or leaves nothing to choose.
    """
    found: dict[str, Range | Choices] = {}
    for written in search:
        flag = f"--search={written}"
        name, _, text = written.partition("=")
        if not name or not text:
            raise BadInput(f"{flag}: it has to be {_FORM}")
        if name not in fields:
            raise BadInput(
                f"{flag}: recipe {recipe} has no such hyperparameter; "
                f"it has {', '.join(fields) or 'none'}"
            )
        if name in found:
            raise BadInput(f"{flag}: there is another --search={name}: keep one of both")
        if "|" not in text and ".." in text:
            found[name] = _parse_range(flag, name, text, fields[name])
        else:
            found[name] = _parse_choices(flag, name, text, fields[name])
    return list(found.values())


def last_number(low: float, high: float, step: float) -> float:
    """Returns the largest number of a range that so many steps from ``low`` reach.

    It is computed in decimal digits, as Optuna does: 0.3 is three steps of 0.1.
    """
    first, last, width = (Decimal(str(number)) for number in (low, high, step))
    return type(high)((last - first) // width * width + first)


def _parse_range(flag: str, name: str, text: str, kind: Any) -> Range:
    form = re.fullmatch(r"(.+?)\.\.(.+?)(?::(log)|:step=(.+))?", text)
    if form is None or ":" in form[2]:
        raise BadInput(f"{flag}: it has to be {_FORM}")
    number = _number_type(kind)
    if number is None:
        raise BadInput(
            f"{flag}: a range is for a field of type int or float: list the values, as in "
            f"{name}=A|B|C"
        )
    low, high = (parse_value(flag, bound, number) for bound in (form[1], form[2]))
    is_log = form[3] is not None
    step = None if form[4] is None else parse_value(flag, form[4], number)
    if not all(math.isfinite(bound) for bound in (low, high, step or 0)):
        raise BadInput(f"{flag}: numbers of a range have to be finite")
    if low > high:
        raise BadInput(f"{flag}: {low} is larger than {high}: write the smaller number first")
    if low == high:
        raise BadInput(f"{flag}: it has a single value: use --hparam={name}={form[1]}")
    if is_log and low <= 0:
        raise BadInput(f"{flag}: with :log, the smaller number has to be positive")
    if step is not None:
        if step <= 0:
            raise BadInput(f"{flag}: the step has to be positive")
        if (last := last_number(low, high, step)) != high:
            raise BadInput(
                f"{flag}: steps of {step} from {low} do not lead to {high}: the last number "
                f"below it is {last}"
            )
    return Range(name, low, high, step, is_log)


def _parse_choices(flag: str, name: str, text: str, kind: Any) -> Choices:
    texts = text.split("|")
    if any(each != each.strip() or not each for each in texts):
        raise BadInput(f"{flag}: values are separated by | alone, and none may be empty")
    try:
        values = [parse_value(flag, each, kind) for each in texts]
    except BadInput as error:
        raise BadInput(f"{error}; --search has to be {_FORM}") from None
    if len(values) == 1:
        raise BadInput(f"{flag}: it has a single value: use --hparam={name}={text}")
    for index, value in enumerate(values):
        if value in values[:index]:
            raise BadInput(f"{flag}: {texts[index]} is there twice")
    is_stored = all(value is None or isinstance(value, (bool, int, float, str)) for value in values)
    return Choices(name, dict(zip(values if is_stored else texts, values, strict=True)))


def _number_type(kind: Any) -> type[int] | type[float] | None:
    """Returns int or float for a field of this type, or of this type or None."""
    if typing.get_origin(kind) in (types.UnionType, typing.Union):
        others = [each for each in typing.get_args(kind) if each is not type(None)]
        kind = others[0] if len(others) == 1 else None
    return kind if kind in (int, float) else None
