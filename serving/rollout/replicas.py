"""The servers of a rollout, each called directly."""

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
from serving.rollout.labels import Assignment, Labels

AVAILABLE: Final = "AVAILABLE"
_STATUS_TIMEOUT_S: Final = 5.0
_PAUSE_S: Final = 0.1
# TF Serving polls once a second: until then, it may report the failure of an earlier load.
_STALE_S: Final = 3.0


class Replica:
    """One server and one of its models.

    Args:
        target: the address of this server, not of a load balancer.
        model: the model's name.
    """

    def __init__(self, target: str, model: str) -> None:
        self.target = target
        self.model = model
        self._client = Client(target, timeout_s=_STATUS_TIMEOUT_S)
        self._failing_since: dict[int, float] = {}

    def versions(self) -> dict[int, str]:
        """Returns the states of versions, newest first; empty without the model."""
        try:
            return {status.version: status.state for status in self._client.status(self.model)}
        except NotFound:
            return {}

    def version_of(self, label: str) -> int | None:
        """Returns the version that a label points to; None if the label does not exist."""
        try:
            return self._client.metadata(self.model, label=label).version
        except (InvalidRequest, NotFound):
            return None

    def reload(self, config: Any, timeout_s: float) -> None:
        """Replaces the server's configuration; raises the client's errors."""
        self._failing_since.clear()
        self._client.reload(config, timeout_s=timeout_s)

    def describe_missing(self, versions: Collection[int], labels: Labels) -> str:
        """Describes the first of these versions and labels that is not served; empty if none.

        Raises:
            Failed: a version failed to load.
        """
        statuses = {status.version: status for status in self._client.status(self.model)}
        for version in sorted(versions):
            status = statuses.get(version)
            if status is None:
                return f"it has not found version {version}"
            if status.error and status.state == "END":
                since = self._failing_since.setdefault(version, time.monotonic())
                if time.monotonic() - since > _STALE_S:
                    raise Failed(f"version {version} failed to load: {status.error}")
            if status.state != AVAILABLE:
                return f"version {version} is {status.state}"
        for label, version in labels.items():
            actual = self.version_of(label)
            if actual != version:
                return f"label {label!r} points to {actual or 'nothing'}, not to version {version}"
        return ""

    def describe_difference(self, assignment: Assignment) -> str:
        """Describes how the server differs from an assignment; empty if it does not."""
        versions = assignment.versions | set(assignment.labels.values())
        missing = self.describe_missing(versions, assignment.labels)
        available = {version for version, state in self.versions().items() if state == AVAILABLE}
        extra = sorted(available - assignment.versions) if assignment.versions else []
        return missing or (f"it serves {', '.join(map(str, extra))} too" if extra else "")

    def close(self) -> None:
        """Closes the connection."""
        self._client.close()


def check_all(replicas: Sequence[Replica], has_model: bool) -> set[int]:
    """Checks that every replica answers, before anything is changed.

    Args:
        replicas: all of them.
        has_model: whether each has to serve the model already.

    Returns:
        The versions that are available on at least one replica.

    Raises:
        Failed: a replica does not answer, or does not serve the model.
    """
    available: set[int] = set()
    for replica in replicas:
        try:
            known = replica.versions()
        except ServingError as error:
            raise Failed(
                f"{error} Nothing was changed: start the replica, or remove it from --targets: it "
                "reads the file when it starts."
            ) from None
        if has_model and not known:
            raise Failed(
                f"{replica.target} has no model {replica.model!r}: does it read this file? "
                "Nothing was changed."
            )
        available |= {version for version, state in known.items() if state == AVAILABLE}
    return available


def reload_all(
    replicas: Sequence[Replica],
    config: Any,
    versions: Collection[int],
    labels: Labels,
    timeout_s: float,
) -> None:
    """Replaces the configuration of every replica, and waits until all serve it.

    A replica that dies meanwhile is waited for: when it starts again, it reads the file, which has
    the same configuration.

    Args:
        replicas: all of them.
        config: a ModelServerConfig.
        versions: versions that have to be available.
        labels: labels that have to point to their versions.
        timeout_s: seconds for all replicas together.

    Raises:
        Failed: a replica failed, or the time is up.
    """
    deadline_s = time.monotonic() + timeout_s

    def reload(replica: Replica) -> str:
        replica.reload(config, max(_PAUSE_S, deadline_s - time.monotonic()))
        return ""

    for replica in replicas:
        _repeat_until_empty(deadline_s, timeout_s, replica, reload)
    for replica in replicas:
        _repeat_until_empty(
            deadline_s,
            timeout_s,
            replica,
            lambda replica: replica.describe_missing(versions, labels),
        )


def _repeat_until_empty(
    deadline_s: float, timeout_s: float, replica: Replica, attempt: Callable[[Replica], str]
) -> None:
    """Repeats ``attempt`` until it returns no text; raises Failed if it fails or time is up."""
    while True:
        try:
            missing = attempt(replica)
        except Failed as error:
            raise Failed(f"{replica.target}: {error}") from None
        except (Unavailable, NotFound, DeadlineExceeded, ResourceExhausted) as error:
            missing = str(error)
        except ServingError as error:
            raise Failed(f"{replica.target}: {error}") from None
        if not missing:
            return
        if time.monotonic() > deadline_s:
            raise Failed(f"{replica.target}, after {timeout_s:g} s: {missing}")
        time.sleep(_PAUSE_S)
