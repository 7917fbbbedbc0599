"""Whether this process is the chief: ``tfdp.is_chief``."""

from __future__ import annotations

import tensorflow as tf

from cluster.spec import Cluster, ClusterError, from_environment
from tfdp.errors import BadInput


def is_chief() -> bool:
    """Returns whether this process is the chief, which writes files for all workers.

    Once a MultiWorkerMirroredStrategy exists, its workers count, whichever ClusterResolver named
    them. Before that, TF_CONFIG counts. Without either, this process is the only one, and true is
    returned.
    """
    config = _runtime_config()
    leader = config.experimental.collective_group_leader  # as in /job:worker/replica:0/task:0
    if leader:
        return leader.replace("/replica:0", "") in config.device_filters
    cluster = cluster_from_environment()
    return cluster is None or cluster.is_chief


def count_workers() -> int:
    """Returns the number of workers that this process is one of, found as in ``is_chief``."""
    if _runtime_config().experimental.collective_group_leader:
        devices = tf.config.list_logical_devices()  # of all workers
        return len({device.name.partition("/device:")[0] for device in devices})
    cluster = cluster_from_environment()
    return 1 if cluster is None else cluster.size


def cluster_from_environment() -> Cluster | None:
    """Returns the cluster that TF_CONFIG describes, or None; raises BadInput if it is wrong."""
    try:
        return from_environment()
    except ClusterError as error:
        raise BadInput(str(error)) from None


def _runtime_config() -> tf.compat.v1.ConfigProto:
    """Returns the configuration of TensorFlow's runtime, which this does not start.

    A MultiWorkerMirroredStrategy writes the chief and its own worker into it. A process can make
    only one such strategy, because it has only one runtime.
    """
    return tf.__internal__.eager_context.get_config()
