"""Which labels a command wants, and by which steps servers get there. Pure arithmetic.

``stable`` is what callers ask for, ``canary`` is a version on trial (the stable one, if none is:
who asks for it is always answered), ``previous`` is what was stable before. A version is loaded as
long as a label points to it, so going back needs no loading.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from serving.rollout.errors import Refused

STABLE: Final = "stable"
CANARY: Final = "canary"
PREVIOUS: Final = "previous"

Labels = Mapping[str, int]


@dataclass(frozen=True)
class Placement:
    """What servers are told about one model.

    Attributes:
        labels: the version that each label points to.
        versions: those that the policy names; empty if it is another policy than ``specific``.
    """

    labels: Labels
    versions: frozenset[int]


def canary(labels: Labels, version: int) -> Labels:
    """Puts ``version`` on trial; the stable version ends the trial."""
    return {**labels, STABLE: stable_of(labels), CANARY: version}


def promote(labels: Labels, version: int) -> Labels:
    """Makes ``version`` stable; doing it again changes nothing."""
    wanted = {**labels, STABLE: version}
    stable = labels.get(STABLE)
    if stable not in (None, version):
        wanted[PREVIOUS] = stable
    if labels.get(CANARY) in (None, stable):
        wanted[CANARY] = version
    return wanted


def rollback(labels: Labels) -> Labels:
    """Makes the previous version stable again.

    The label ``previous`` is gone afterwards, so that doing it again can't go forth and back: it
    changes nothing then.
    """
    stable = stable_of(labels)
    if PREVIOUS not in labels:
        return labels
    wanted = {name: version for name, version in labels.items() if name != PREVIOUS}
    wanted[STABLE] = labels[PREVIOUS]
    if labels.get(CANARY) == stable:
        wanted[CANARY] = wanted[STABLE]
    return wanted


def stable_of(labels: Labels) -> int:
    """The stable version.

    Raises:
        Refused: no label says which it is.
    """
    if STABLE not in labels:
        raise Refused(
            f"no label {STABLE!r} says yet what callers get: `promote VERSION` sets it first"
        )
    return labels[STABLE]


def steps(now: Placement, wanted: Labels) -> list[Placement]:
    """What servers are to be told, one after the other, each when all have done the one before.

    A label moves only to a version that is up, so versions are loaded first; one that a label
    points to must not go, so labels move before anything is dropped. The first step may say what
    the file says already: a rollout may have been killed before servers heard of it.
    """
    after = frozenset(wanted.values())
    both = now.versions | frozenset(now.labels.values()) | after
    path = [Placement(now.labels, both)]
    if wanted != now.labels:
        path.append(Placement(wanted, both))
    if after != both:
        path.append(Placement(wanted, after))
    return path
