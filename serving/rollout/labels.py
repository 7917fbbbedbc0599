"""The labels after each command, and the steps that lead there. Does no I/O.

Callers use ``stable``. ``canary`` is a version on trial; without a trial it points to the stable
version, so its callers always get an answer. ``previous`` is the stable version before the last
promotion. A version stays loaded as long as a label points to it: a rollback needs no loading.
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
class Assignment:
    """The labels and versions of one model in a configuration.

    Attributes:
        labels: version numbers by label.
        versions: the versions that the policy names; empty for policies other than ``specific``.
    """

    labels: Labels
    versions: frozenset[int]


def canary(labels: Labels, version: int) -> Labels:
    """Returns labels with ``version`` on trial; the stable version ends the trial."""
    return {**labels, STABLE: stable_of(labels), CANARY: version}


def promote(labels: Labels, version: int) -> Labels:
    """Returns labels with ``version`` as stable; a repetition changes nothing."""
    wanted = {**labels, STABLE: version}
    stable = labels.get(STABLE)
    if stable not in (None, version):
        wanted[PREVIOUS] = stable
    if labels.get(CANARY) in (None, stable):
        wanted[CANARY] = version
    return wanted


def rollback(labels: Labels) -> Labels:
    """Returns labels with the previous version as stable.

    It removes the label ``previous``, so a repetition changes nothing.
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
    """Returns the stable version.

    Raises:
        Refused: the label ``stable`` does not exist.
    """
    if STABLE not in labels:
        raise Refused(f"the label {STABLE!r} does not exist yet: `promote VERSION` sets it first")
    return labels[STABLE]


def steps(current: Assignment, labels: Labels) -> list[Assignment]:
    """Returns the assignments to apply one after the other, each once all replicas have the last.

    A label may only move to an available version, so versions are loaded first. A version with a
    label must not be unloaded, so labels move before versions are dropped. The first step may equal
    the file: an earlier rollout may have been killed before it reached the replicas.
    """
    new_versions = frozenset(labels.values())
    all_versions = current.versions | frozenset(current.labels.values()) | new_versions
    path = [Assignment(current.labels, all_versions)]
    if labels != current.labels:
        path.append(Assignment(labels, all_versions))
    if new_versions != all_versions:
        path.append(Assignment(labels, new_versions))
    return path
