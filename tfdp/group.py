"""The workers that this process is one of, as it finds them before they meet. No TensorFlow."""

from __future__ import annotations

import os

from cluster import spec
from cluster.meeting.group import Choice, Group, find_group, of_cluster
from cluster.spec import Cluster, ClusterError
from tfdp.errors import BadInput

_choice: Choice | None = None  # until ``look_for``
_given_tf_config: str | None = None  # TF_CONFIG as this process was started with


def look_for(choice: Choice) -> Group | None:
    """Finds the workers that this process is one of, where ``--cluster`` says.

    Returns:
        The group, or None if this process trains by itself.

    Raises:
        BadInput: if TF_CONFIG or an engine's variables are wrong.
    """
    global _choice, _given_tf_config
    if _choice is None:
        _given_tf_config = os.environ.get("TF_CONFIG")
    _choice = choice
    return known_group()


def set_cluster(met: Cluster) -> None:
    """Lets TensorFlow, and ``known_group``, know the workers that have met."""
    if met.size == 1:
        look_for("none")
    else:
        os.environ["TF_CONFIG"] = met.tf_config()


def given_environment() -> dict[str, str]:
    """Returns the environment without what ``set_cluster`` has changed."""
    environ = dict(os.environ)
    environ.pop("TF_CONFIG", None)
    return environ if _given_tf_config is None else {**environ, "TF_CONFIG": _given_tf_config}


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
