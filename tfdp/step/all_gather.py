"""``tfdp.all_gather``: the rows of all replicas, for losses and states of a whole batch."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import tensorflow as tf

from tfdp.errors import BadInput
from tfdp.step import share as share_module
from tfdp.step.all_reduce import all_reduce_sum, replica_index
from tfdp.step.share import Share

_notes: list[Callable[[], None]] = []


def all_gather(rows: Any) -> Any:
    """Returns the rows of the global batch, on every replica; for use in a step.

    A loss between examples (contrastive, cross-correlation), a product of means over the batch, or
    a queue of features needs the whole batch, and a replica has only its share. Computed from
    gathered rows, it is that of one process, and so is its gradient, which passes through.

    In one process, or outside of a step of tfdp, it returns its argument.

    Args:
        rows: a tensor of numbers (or a structure of them) with a row for each example of the
            replica's share along its first dimension.

    Returns:
        The same with a row for each example of the global batch, in the batch's order.

    Raises:
        BadInput: with ``accumulate_steps``, because a replica has not all of its rows at once.
    """
    share = share_module.current()
    if share is None:
        return rows
    for note in _notes:
        note()
    if share.is_micro_batch:
        raise BadInput(
            "tfdp.all_gather gathers the whole batch, and accumulate_steps has it computed in "
            "micro-batches, one after the other: leave accumulate_steps out"
        )
    return tf.nest.map_structure(
        lambda each: gathered_rows(tf.convert_to_tensor(each), share), rows
    )


@contextlib.contextmanager
def noted(note: Callable[[], None]) -> Iterator[None]:
    """Inside the block, ``note`` is called for each ``all_gather``."""
    _notes.append(note)
    try:
        yield
    finally:
        _notes.remove(note)


def gathered_rows(rows: tf.Tensor, share: Share) -> tf.Tensor:
    """Returns the rows of all replicas, given this replica's and its share; see ``all_gather``."""
    index = replica_index()
    # By sums alone: they work for unequal numbers of rows, and with every implementation.
    counts = all_reduce_sum(tf.one_hot(index, share.replicas, share.examples, 0, dtype=tf.int32))
    first = tf.reduce_sum(counts[:index])
    after = tf.reduce_sum(counts) - first - share.examples

    def zeros(count: tf.Tensor, like: tf.Tensor) -> tf.Tensor:
        return tf.zeros(tf.concat([[count], tf.shape(like)[1:]], axis=0), like.dtype)

    @tf.custom_gradient
    def gather(own: tf.Tensor) -> tuple[tf.Tensor, Any]:
        # A replica without examples computes on one that does not count.
        counted = own[: share.examples]
        whole = all_reduce_sum(tf.concat([zeros(first, own), counted, zeros(after, own)], axis=0))
        whole.set_shape([None, *own.shape[1:]])

        def gradient(upstream: tf.Tensor) -> tf.Tensor:
            of_own = all_reduce_sum(upstream)[first : first + share.examples]
            return tf.concat([of_own, zeros(tf.shape(own)[0] - share.examples, own)], axis=0)

        return whole, gradient

    return gather(rows)
