"""Applies labels to every replica, step by step, and undoes the steps if a replica fails."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from serving.client.errors import ServingError
from serving.rollout import replicas as replicas_module
from serving.rollout.errors import Failed
from serving.rollout.labels import Assignment, Labels, steps
from serving.rollout.models_config import ModelsConfig
from serving.rollout.replicas import Replica


def apply_labels(
    config: ModelsConfig,
    replicas: Sequence[Replica],
    labels: Labels,
    timeout_s: float,
    report: Callable[[str], None],
) -> None:
    """Moves the labels to their versions, on every replica and in the file.

    The file is written before each step, so a replica that starts again reads the same
    configuration. If the process is killed, the same command continues.

    Args:
        config: the current file.
        replicas: the running replicas; without any, only the file is written.
        labels: version numbers by label.
        timeout_s: seconds for each step on all replicas.
        report: gets a line of text after each step.

    Raises:
        Refused: a version is not on the disk.
        Failed: a replica failed. All are as before, unless the message states otherwise.
    """
    old_labels = config.assignment.labels
    for version in sorted({v for label, v in labels.items() if old_labels.get(label) != v}):
        config.check_on_disk(version)
    available = replicas_module.check_all(replicas, has_model=not config.is_new)
    # Servers refuse every configuration with a label on a version that can't be loaded (its folder
    # was deleted, for example). Such a label is removed first if it moves.
    live = {label: v for label, v in old_labels.items() if v in available or labels.get(label) == v}
    path = steps(Assignment(live, config.assignment.versions), labels)
    for step in path if replicas else path[-1:]:
        message = config.with_assignment(step)
        has_moved = step.labels == labels
        config.write(message)
        try:
            replicas_module.reload_all(
                replicas, message, set(labels.values()), labels if has_moved else {}, timeout_s
            )
        except Failed as error:
            if step.versions != path[0].versions:  # this step only drops versions without a label
                raise Failed(
                    f"{error}. The labels have moved on every replica; versions that no label "
                    "points to may still be loaded. Run the same command again."
                ) from None
            raise Failed(f"{error}. {_undo(config, replicas, path[0], timeout_s)}") from None
        report(_describe(step, has_moved, labels, len(replicas)))


def is_unfinished(config: ModelsConfig, replicas: Sequence[Replica]) -> bool:
    """Returns whether an earlier command was killed before its end."""
    assignment = config.assignment
    if assignment.versions != set(assignment.labels.values()):
        return True
    return any(differences(config, replicas).values())


def differences(config: ModelsConfig, replicas: Sequence[Replica]) -> dict[str, str]:
    """Returns how each replica differs from the file, by target; an empty text if it does not."""
    texts = {}
    for replica in replicas:
        try:
            texts[replica.target] = replica.describe_difference(config.assignment)
        except (ServingError, Failed) as error:
            texts[replica.target] = str(error)
    return texts


def _undo(
    config: ModelsConfig, replicas: Sequence[Replica], loaded: Assignment, timeout_s: float
) -> str:
    """Restores the file and every replica that answers; returns a text about the result.

    Labels move back before the new version is dropped, so a label always has a version.
    """
    config.restore()
    is_new = config.is_new
    messages = [config.original] if is_new else [config.with_assignment(loaded), config.original]
    failures = []
    for replica in replicas:
        try:
            for message in messages:
                replica.reload(message, timeout_s)
        except ServingError as error:
            failures.append(f"{replica.target} could not be restored: {error}")
    return " ".join(failures or ["Everything was restored."])


def _describe(step: Assignment, has_moved: bool, labels: Labels, replicas: int) -> str:
    where = f"on {replicas} replica{'s' * (replicas != 1)}" if replicas else "in the file"
    if not has_moved:
        loaded = ", ".join(str(version) for version in sorted(set(labels.values())))
        return f"loaded {loaded} {where}"
    moved = ", ".join(f"{label} {version}" for label, version in sorted(step.labels.items()))
    return f"{moved} {where}; loaded: {', '.join(map(str, sorted(step.versions)))}"
