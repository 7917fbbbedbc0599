"""Variables that a step assigns and that are no averages: counters, sums and queues of rows."""

from __future__ import annotations

from collections.abc import Sequence

import tensorflow as tf

from tfdp.step.all_gather import gathered_rows
from tfdp.step.all_reduce import all_reduce_sum, replica_index
from tfdp.step.rules import State
from tfdp.step.share import Share


class ReplicatedStates:
    """Gives all replicas the value that one process would assign; made at the start of a step.

    Args:
        states: the rules of all variables that the step assigns.
    """

    def __init__(self, states: Sequence[State]) -> None:
        self._before = [
            (state, tf.identity(state.variable.value))
            for state in states
            if state.kind in ("sum", "rows_first", "rows_last", "maximum", "minimum")
        ]

    def combine(self, share: Share) -> None:
        """Combines what the replicas have assigned since; call it in replica context."""
        for state, before in self._before:
            variable = state.variable.value
            if state.kind == "sum":
                kept = (
                    before if state.keeps == 1 else before * tf.constant(state.keeps, before.dtype)
                )
                added = variable - kept
                added = tf.where(share.examples > 0, added, tf.zeros_like(added))
                total = all_reduce_sum(added)
                variable.assign(kept + total)
            elif state.kind in ("maximum", "minimum"):
                own = tf.where(share.examples > 0, variable, before)
                of_all = tf.reduce_max if state.kind == "maximum" else tf.reduce_min
                places = tf.one_hot(replica_index(), share.replicas, dtype=own.dtype)
                table = tf.tensordot(places, own, axes=0)  # [replicas, …], zeros but for its own
                variable.assign(of_all(all_reduce_sum(table), axis=0))
            elif state.kind == "rows_first":
                rows = gathered_rows(variable[: share.examples], share)
                rest = tf.shape(before)[0] - tf.shape(rows)[0]
                variable.assign(tf.concat([rows, before[:rest]], axis=0))
            else:
                own = variable[tf.shape(variable)[0] - share.examples :]
                rows = gathered_rows(own, share)
                variable.assign(tf.concat([before[tf.shape(rows)[0] :], rows], axis=0))
