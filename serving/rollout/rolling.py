"""Moves a model's labels on every replica, step by step, and back if one can't."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from serving.client.errors import ServingError
from serving.rollout import plans, replicas
from serving.rollout.config import ModelsConfig
from serving.rollout.errors import Failed
from serving.rollout.plans import Labels, Placement
from serving.rollout.replicas import Replica


def move(
    config: ModelsConfig,
    servers: Sequence[Replica],
    wanted: Labels,
    timeout_s: float,
    say: Callable[[str], None],
) -> None:
    """Gives the labels their new places, on every replica and in the file.

    The file always says what replicas were last told, so one that starts anew comes to the same.
    Killed at any moment, the same command goes on.

    Args:
        config: the file as it is.
        servers: the replicas; none, if nothing runs yet: then only the file is written.
        wanted: the version for each label.
        timeout_s: how long each step may take.
        say: told, in one line, what has been done.

    Raises:
        Refused: a version is not on the disk.
        Failed: a replica did not come along. All are as they were then, unless the message says
            otherwise.
    """
    labels = config.placement.labels
    for version in sorted({v for label, v in wanted.items() if labels.get(label) != v}):
        config.check_on_disk(version)
    up = replicas.check(servers, has_model=not config.is_new)
    # A label whose version is gone (its folder was deleted, say) makes servers refuse everything,
    # so one that is to move is taken away first.
    live = {label: v for label, v in labels.items() if v in up or wanted.get(label) == v}
    path = plans.steps(Placement(live, config.placement.versions), wanted)
    for step in path if servers else path[-1:]:
        message = config.with_placement(step)
        moved = step.labels == wanted
        config.write(message)
        try:
            replicas.follow(
                servers, message, set(wanted.values()), wanted if moved else {}, timeout_s
            )
        except Failed as error:
            if step.versions != path[0].versions:  # it only drops what nobody asks for
                raise Failed(
                    f"{error}. The labels have moved on every replica; versions that no label "
                    "points to may still be loaded. Run the same command again."
                ) from None
            raise Failed(f"{error}. {_undo(config, servers, path[0], timeout_s)}") from None
        say(_describe(step, moved, wanted, len(servers)))


def unfinished(config: ModelsConfig, servers: Sequence[Replica]) -> bool:
    """Tells whether an earlier command was killed before its end."""
    placement = config.placement
    if placement.versions != set(placement.labels.values()):
        return True
    return any(report(config, servers).values())


def report(config: ModelsConfig, servers: Sequence[Replica]) -> dict[str, str]:
    """For each replica, how it differs from the file; empty if it doesn't."""
    found = {}
    for server in servers:
        try:
            found[server.target] = server.differs(config.placement)
        except (ServingError, Failed) as error:
            found[server.target] = str(error)
    return found


def _undo(
    config: ModelsConfig, servers: Sequence[Replica], loaded: Placement, timeout_s: float
) -> str:
    """Puts the file back, and every replica that can be told; says how that went.

    Labels go back before the new version is dropped: a label never leads to nothing.
    """
    config.restore()
    back = [config.before] if config.is_new else [config.with_placement(loaded), config.before]
    complaints = []
    for server in servers:
        try:
            for message in back:
                server.reload(message, timeout_s)
        except ServingError as error:
            complaints.append(f"{server.target} could not be put back: {error}")
    return " ".join(complaints or ["Everything was put back as it was."])


def _describe(step: Placement, moved: bool, wanted: Labels, servers: int) -> str:
    where = f"on {servers} replica{'s' * (servers != 1)}" if servers else "in the file"
    if not moved:
        loaded = ", ".join(str(version) for version in sorted(set(wanted.values())))
        return f"loaded {loaded} {where}"
    labels = ", ".join(f"{label} {version}" for label, version in sorted(step.labels.items()))
    return f"{labels} {where}; loaded: {', '.join(map(str, sorted(step.versions)))}"
