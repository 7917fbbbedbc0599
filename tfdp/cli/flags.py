"""Settings of a command: a frozen dataclass whose fields are the command's flags.

A field is declared by ``flag(default, help)``. Its annotation decides how the flag is parsed:
``int``, ``float``, ``bool``, ``str``, ``Path``, a ``Literal``, any of them or None,
``tuple[str, ...]`` (a flag that may be repeated) or ``tuple[int, ...]`` (a comma-separated list).
"""

from __future__ import annotations

import dataclasses
import os
import types
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from absl import flags

from tfdp.errors import BadInput

_HELP_FLAGS = ("--help", "-help", "--helpfull")

Settings = TypeVar("Settings")


def flag(default: Any, help: str, *, may_differ: bool = False) -> Any:
    """Declares a dataclass field that is also a flag.

    Args:
        default: value without the flag.
        help: one sentence for ``--help``.
        may_differ: whether workers may have different values.
    """
    return dataclasses.field(default=default, metadata={"help": help, "may_differ": may_differ})


def print_help(kind: type[Any], argv: Sequence[str], about: str) -> bool:
    """Prints ``about`` and the flags if the command line asks for help; returns whether it does."""
    if not any(argument in _HELP_FLAGS for argument in argv):
        return False
    _, _, described = _define(kind).get_help().partition(":\n")  # after the defining module's name
    print(f"{about}\n{described}")
    return True


def parse(kind: type[Settings], argv: Sequence[str]) -> Settings:
    """Parses a command line.

    Args:
        kind: dataclass of the settings, its fields declared by ``flag``.
        argv: the program's name and its arguments.

    Raises:
        BadInput: if the command line or a value is wrong, or ``KERAS_BACKEND`` is not tensorflow.
    """
    values = _define(kind)
    try:
        rest = values(list(argv))[1:]
    except flags.Error as error:
        raise BadInput(f"{error} (--help lists the flags)") from None
    if rest:
        raise BadInput(f"{rest[0]!r} is not a flag: flags begin with -- (--help lists them)")
    backend = os.environ.get("KERAS_BACKEND", "tensorflow")
    if backend != "tensorflow":
        raise BadInput(f"KERAS_BACKEND is {backend}: it has to be tensorflow, or not set")
    hints = typing.get_type_hints(kind)
    return kind(
        **{
            field.name: _converted(field.name, values[field.name].value, hints[field.name])
            for field in dataclasses.fields(kind)  # type: ignore[arg-type]
        }
    )


def shared(settings: Any) -> dict[str, Any]:
    """Returns the values that all workers must have in common, by flag (``--seed``)."""
    return {
        f"--{field.name}": getattr(settings, field.name)
        for field in dataclasses.fields(settings)
        if not field.metadata["may_differ"]
    }


def _define(kind: type[Any]) -> flags.FlagValues:
    values = flags.FlagValues()
    hints = typing.get_type_hints(kind)
    for field in dataclasses.fields(kind):
        name, text = field.name, field.metadata["help"]
        default: Any = field.default
        hint = _without_none(hints[name])
        if hint == tuple[str, ...]:
            flags.DEFINE_multi_string(name, list(default), text, flag_values=values)
        elif hint == tuple[int, ...]:
            flags.DEFINE_list(name, [str(each) for each in default], text, flag_values=values)
        elif hint is bool:
            flags.DEFINE_boolean(name, default, text, flag_values=values)
        elif hint is int:
            flags.DEFINE_integer(name, default, text, flag_values=values)
        elif hint is float:
            flags.DEFINE_float(name, default, text, flag_values=values)
        else:
            default = "" if default == Path() else default  # an empty path stands for no path
            flags.DEFINE_string(name, default, text, flag_values=values)
    return values


def _converted(name: str, value: Any, hint: Any) -> Any:
    hint = _without_none(hint)
    if value is None:
        return None
    if hint is Path:
        return Path(value)
    if hint == tuple[str, ...]:
        return tuple(value)
    if hint == tuple[int, ...]:
        try:
            return tuple(int(each) for each in value)
        except ValueError:
            raise BadInput(
                f"--{name} is {','.join(value)}: it has to be whole numbers, as in 1,8,32"
            ) from None
    return value


def _without_none(hint: Any) -> Any:
    if isinstance(hint, types.UnionType):
        return next(each for each in hint.__args__ if each is not type(None))
    return hint
