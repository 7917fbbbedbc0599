"""Finds the outputs that take less time than passing the work to another thread."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import tensorflow as tf

_MAX_NODES = 100
# Parts of the names of operations whose time does not depend on their number: a loop may take any.
_UNBOUNDED = ("While", "For", "Enter", "Map", "Dataset", "Iterator", "Queue", "PyFunc")


class CheapGraphs:
    """Judges outputs of a graph by the operations that compute them."""

    def __init__(self, graph: tf.Graph) -> None:
        definition = graph.as_graph_def()
        self._nodes = {node.name: node for node in definition.node}
        self._functions = {
            function.signature.name: function.node_def for function in definition.library.function
        }

    def is_cheap(self, outputs: Collection[str]) -> bool:
        """Returns whether few operations, and no loop, compute the tensors of these names."""
        names = [_operation(name) for name in outputs]
        if not all(name in self._nodes for name in names):
            return False
        pending = [self._nodes[name] for name in names]
        seen, called, count = set(names), set(), 0
        while pending:
            node = pending.pop()
            count += 1
            if count > _MAX_NODES or any(word in node.op for word in _UNBOUNDED):
                return False
            for name in map(_operation, node.input):
                if name in self._nodes and name not in seen:
                    seen.add(name)
                    pending.append(self._nodes[name])
            for function in _called_functions(node):
                if function in self._functions and function not in called:
                    called.add(function)
                    pending += self._functions[function]
        return True


def _called_functions(node: Any) -> list[str]:
    """Returns the names of the functions that are attributes of an operation."""
    values = node.attr.values()
    return [function.name for value in values for function in (value.func, *value.list.func)]


def _operation(tensor: str) -> str:
    """Returns ``a`` for ``a``, ``a:0`` and ``^a``."""
    return tensor.removeprefix("^").partition(":")[0]
