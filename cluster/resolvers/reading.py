"""Reads the variables with which engines describe a process."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from cluster.resolvers.place import PlaceError

REMEDY: Final = "correct or unset it, or give --cluster=none to train on this machine alone"


def whole_number(environ: Mapping[str, str], name: str) -> int:
    """Returns the value of a variable that has to be set.

    Raises:
        PlaceError: if it is not set, or not a whole number from 0.
    """
    text = environ[name].strip()
    if not (text.isascii() and text.isdecimal()):
        raise PlaceError(f"{name} is {text!r}: it has to be a whole number from 0; {REMEDY}")
    return int(text)


def optional_number(environ: Mapping[str, str], name: str) -> int | None:
    """Returns the value of a variable, or None if it is not set.

    Raises:
        PlaceError: if it is set, but not a whole number from 0.
    """
    return whole_number(environ, name) if environ.get(name) else None


def check_all_set(environ: Mapping[str, str], names: Sequence[str], engine: str) -> None:
    """Raises PlaceError if some of ``names``, which describe a process together, are not set."""
    missing = [name for name in names if not environ.get(name)]
    if missing:
        given = ", ".join(f"{name} is {environ[name]!r}" for name in names if environ.get(name))
        raise PlaceError(
            f"{given}, but {' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} not set: "
            f"{engine} has to set all of {', '.join(names)}; unset the others, or give "
            "--cluster=none, to train on this machine alone"
        )
