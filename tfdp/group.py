"""The workers that this process is one of, as it finds them before they meet. No TensorFlow."""

from __future__ import annotations

from cluster import spec
from cluster.meeting.group import Choice, Group, find_group, of_cluster
from cluster.spec import ClusterError
from tfdp.errors import BadInput

_choice: Choice | None = None  # until ``look_for``


def look_for(choice: Choice) -> Group | None:
    """Finds the workers that this process is one of, where ``--cluster`` says.

    Returns:
        The group, or None if this process trains by itself.

    Raises:
        BadInput: if TF_CONFIG or an engine's variables are wrong.
    """
    global _choice
    _choice = choice
    return known_group()


def known_group() -> Group | None:
    """Returns the group that ``look_for`` finds; before its first call, the one of TF_CONFIG.

    An engine's variables alone don't tell whether its processes train together. A process that
    joins the others says so.

    Raises:
        BadInput: as ``look_for``.
    """
    try:
        if _choice is not None:
            return find_group(_choice)
        cluster = spec.from_environment()
    except ClusterError as error:
        raise BadInput(str(error)) from None
    return None if cluster is None else of_cluster(cluster)
