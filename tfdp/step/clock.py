"""The time within a graph, read when tensors are ready."""

from __future__ import annotations

from typing import Any

import tensorflow as tf


def time_s(after: Any) -> tf.Tensor:
    """Returns the time (s, float64 scalar) when all tensors of a list are computed.

    Args:
        after: tensors or IndexedSlices; nothing that uses them waits for the clock.
    """
    leaves = [value.values if isinstance(value, tf.IndexedSlices) else value for value in after]
    with tf.control_dependencies(leaves):
        return tf.timestamp()
