"""A place for one trial."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Final

from tfdp.errors import BadInput

# TensorFlow reads the first, libraries such as NumPy's the other one. Bits do not depend on
# inter-op threads, and with one of them a collective would block all other operations.
THREAD_VARIABLES: Final = ("TF_NUM_INTRAOP_THREADS", "OMP_NUM_THREADS")


@dataclasses.dataclass(frozen=True)
class Slot:
    """A place for one trial.

    Args:
        name: for people: ``slot 0``, ``gpu 1``, ``h1``.
        launcher: the words that precede ``python -m tfdp.train …``; it ends with the exit code of
            the run, as ``cluster.policy`` defines it.
        environ: variables on top of this process's.
        may_be_away: whether it is on another machine, which can fail while this one does not.
    """

    name: str
    launcher: tuple[str, ...] = ()
    environ: Mapping[str, str] = dataclasses.field(default_factory=dict)
    may_be_away: bool = False


def thread_environ(threads: int | None) -> dict[str, str]:
    """Returns the variables that give each worker so many threads; none for TensorFlow's own."""
    return {} if threads is None else dict.fromkeys(THREAD_VARIABLES, str(threads))


def number_of_slots(parallel: int | None, fitting: int, described: str, remedy: str) -> int:
    """Returns ``--parallel``, or its default: as many slots as fit.

    Args:
        parallel: the flag.
        fitting: number of slots that fit.
        described: what they fit into, as the rest of a sentence.
        remedy: what to change if it is too few.

    Raises:
        BadInput: if fewer fit than were asked for, or none.
    """
    if fitting < (parallel or 1):
        asked = "" if parallel is None else f"--parallel is {parallel}, but "
        raise BadInput(f"{asked}{described}: {remedy}")
    return fitting if parallel is None else parallel
