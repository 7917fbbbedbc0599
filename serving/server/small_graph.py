"""Which outputs take so little that handing them to another thread costs more than running them."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import tensorflow as tf

_MAX_NODES = 100
# Parts of the names of operations that may take any time, however few they are.
_ENDLESS = ("While", "For", "Enter", "Map", "Dataset", "Iterator", "Queue", "PyFunc")


class Finder:
    """Looks at what outputs of a graph are made of."""

    def __init__(self, graph: tf.Graph) -> None:
        definition = graph.as_graph_def()
        self._nodes = {node.name: node for node in definition.node}
        self._functions = {
            each.signature.name: each.node_def for each in definition.library.function
        }

    def is_small(self, outputs: Collection[str]) -> bool:
        """Whether few operations, none of them a loop, make the tensors of these names."""
        names = [_operation(name) for name in outputs]
        if not all(name in self._nodes for name in names):
            return False
        ahead = [self._nodes[name] for name in names]
        seen, called, count = set(names), set(), 0
        while ahead:
            node = ahead.pop()
            count += 1
            if count > _MAX_NODES or any(word in node.op for word in _ENDLESS):
                return False
            for name in map(_operation, node.input):
                if name in self._nodes and name not in seen:
                    seen.add(name)
                    ahead.append(self._nodes[name])
            for function in _called(node):
                if function in self._functions and function not in called:
                    called.add(function)
                    ahead += self._functions[function]
        return True


def _called(node: Any) -> list[str]:
    """Names of the functions that are handed to an operation."""
    values = node.attr.values()
    return [each.name for value in values for each in (value.func, *value.list.func)]


def _operation(tensor: str) -> str:
    """``a`` of ``a``, ``a:0`` and ``^a``."""
    return tensor.removeprefix("^").partition(":")[0]
