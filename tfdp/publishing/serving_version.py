"""Which operations the pinned TF Serving lacks: it may be older than the TensorFlow that exports.

The table is the difference of ``TF_GetAllOpList`` between the packages tensorflow 2.20.0 and
2.21.0: of 1,910 operations one is new, and one has a new attribute. All others are equal.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import tensorflow as tf

TF_SERVING = "2.20.0"  # of docker-compose.yml; its releases are named after their TensorFlow
COMPARED_WITH = "2.21"  # the TensorFlow whose additions are below

NEW_OPERATIONS = {"DecodeJxl"}
NEW_ATTRIBUTES = {
    ("TensorListGetItem", "Tshape"): tf.int32
}  # with their defaults, left out if equal


def unsupported(nodes: Iterable[Any]) -> set[str]:
    """Returns which operations of a graph's nodes (``NodeDef``) the pinned TF Serving lacks."""
    found = set()
    for node in nodes:
        if node.op in NEW_OPERATIONS:
            found.add(node.op)
        for (operation, attribute), default in NEW_ATTRIBUTES.items():
            if node.op == operation and attribute in node.attr:
                dtype = tf.as_dtype(node.attr[attribute].type)
                if dtype != default:  # TensorFlow leaves defaults out when it saves
                    found.add(f"{operation} with {attribute}={dtype.name}")
    return found
