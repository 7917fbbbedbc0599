"""Whether this process is the chief: ``tfdp.is_chief``."""

from __future__ import annotations

import tensorflow as tf

from tfdp.group import known_group


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
    group = known_group()
    return group is None or group.is_chief


def count_workers() -> int:
    """Returns the number of workers that this process is one of, found as in ``is_chief``."""
    if _runtime_config().experimental.collective_group_leader:
        devices = tf.config.list_logical_devices()  # of all workers
        return len({device.name.partition("/device:")[0] for device in devices})
    group = known_group()
    return 1 if group is None else group.size


def _runtime_config() -> tf.compat.v1.ConfigProto:
    """Returns the configuration of TensorFlow's runtime, which this does not start.

    A MultiWorkerMirroredStrategy writes the chief and its own worker into it. A process can make
    only one such strategy, because it has only one runtime.
    """
    return tf.__internal__.eager_context.get_config()
