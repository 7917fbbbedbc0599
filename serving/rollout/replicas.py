"""The servers that are rolled out to, each asked by itself."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from typing import Any, Final

from serving.client import Client
from serving.client.errors import (
    DeadlineExceeded,
    InvalidRequest,
    NotFound,
    ResourceExhausted,
    ServingError,
    Unavailable,
)
from serving.rollout.errors import Failed
from serving.rollout.plans import Labels, Placement

AVAILABLE: Final = "AVAILABLE"
_ANSWER_S: Final = 5.0  # for a question about a state
_PAUSE_S: Final = 0.1
# TF Serving looks for changes once a second: the failure of an earlier try may be shown till then.
_STALE_S: Final = 3.0


class Replica:
    """One server and one of its models.

    Args:
        target: its address: of this server, not of something before several.
        model: the model's name.
    """

    def __init__(self, target: str, model: str) -> None:
        self.target = target
        self.model = model
        self._client = Client(target, timeout_s=_ANSWER_S)
        self._failing_since: dict[int, float] = {}

    def versions(self) -> dict[int, str]:
        """The states of its versions, newest first; none if it doesn't know the model."""
        try:
            return {each.version: each.state for each in self._client.status(self.model)}
        except NotFound:
            return {}

    def labelled(self, label: str) -> int | None:
        """The version that answers to a label; None if none does."""
        try:
            return self._client.metadata(self.model, label=label).version
        except (InvalidRequest, NotFound):
            return None

    def reload(self, config: Any, timeout_s: float) -> None:
        """Has it serve ``config``; raises the client's errors."""
        self._failing_since.clear()
        self._client.reload(config, timeout_s=timeout_s)

    def lacks(self, versions: Collection[int], labels: Labels) -> str:
        """What of these versions and labels it doesn't answer to yet; empty if nothing.

        Raises:
            Failed: it has tried to load a version in vain.
        """
        states = {each.version: each for each in self._client.status(self.model)}
        for version in sorted(versions):
            status = states.get(version)
            if status is None:
                return f"it has not found version {version}"
            if status.error and status.state == "END":
                since = self._failing_since.setdefault(version, time.monotonic())
                if time.monotonic() - since > _STALE_S:
                    raise Failed(f"version {version} failed to load: {status.error}")
            if status.state != AVAILABLE:
                return f"version {version} is {status.state}"
        for label, version in labels.items():
            answers = self.labelled(label)
            if answers != version:
                return f"label {label!r} leads to {answers or 'nothing'}, not to version {version}"
        return ""

    def differs(self, placement: Placement) -> str:
        """How it differs from what the file says; empty if it doesn't."""
        lacks = self.lacks(placement.versions | set(placement.labels.values()), placement.labels)
        up = {version for version, state in self.versions().items() if state == AVAILABLE}
        more = sorted(up - placement.versions) if placement.versions else []
        return lacks or (f"it serves {', '.join(map(str, more))} too" if more else "")

    def close(self) -> None:
        """Closes the connection."""
        self._client.close()


def check(replicas: Sequence[Replica], has_model: bool) -> set[int]:
    """Asks every replica whether it is there, before anything is changed.

    Returns:
        The versions that are available on any of them.

    Raises:
        Failed: one isn't, or it has not the model although ``has_model``.
    """
    up: set[int] = set()
    for replica in replicas:
        try:
            known = replica.versions()
        except ServingError as error:
            raise Failed(
                f"{error} Nothing was changed: have it answer, or leave it out of --targets, since "
                "it reads the file when it starts."
            ) from None
        if has_model and not known:
            raise Failed(
                f"{replica.target} has no model {replica.model!r}: does it read this file? "
                "Nothing was changed."
            )
        up |= {version for version, state in known.items() if state == AVAILABLE}
    return up


def follow(
    replicas: Sequence[Replica],
    config: Any,
    versions: Collection[int],
    labels: Labels,
    timeout_s: float,
) -> None:
    """Has every replica serve ``config``, and waits until all do.

    One that dies meanwhile is waited for: it reads the file, which says the same, when it starts
    again.

    Args:
        replicas: all of them.
        config: a ModelServerConfig.
        versions: those that have to be available.
        labels: those that have to answer.
        timeout_s: how long all this may take.

    Raises:
        Failed: one can't, or not in time.
    """
    ends = time.monotonic() + timeout_s

    def told(replica: Replica) -> str:
        replica.reload(config, max(_PAUSE_S, ends - time.monotonic()))
        return ""

    for replica in replicas:
        _until(ends, timeout_s, replica, told)
    for replica in replicas:
        _until(ends, timeout_s, replica, lambda each: each.lacks(versions, labels))


def _until(
    ends: float, timeout_s: float, replica: Replica, missing: Callable[[Replica], str]
) -> None:
    while True:
        try:
            what = missing(replica)
        except Failed as error:
            raise Failed(f"{replica.target}: {error}") from None
        except (Unavailable, NotFound, DeadlineExceeded, ResourceExhausted) as error:
            what = str(error)
        except ServingError as error:
            raise Failed(f"{replica.target}: {error}") from None
        if not what:
            return
        if time.monotonic() > ends:
            raise Failed(f"{replica.target}, after {timeout_s:g} s: {what}")
        time.sleep(_PAUSE_S)
