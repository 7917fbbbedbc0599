"""Sums over all replicas, within a step."""

from __future__ import annotations

import contextlib
import itertools
import threading
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import tensorflow as tf

# Bytes that a link carries in the time that any message takes: half a millisecond at 0.5 GB/s
# between CPUs over gRPC, 20 µs at 12 GB/s between GPUs.
BYTES_PER_HOP = 1 << 18
# TensorFlow identifies a collective by its group key and instance key, which have to be equal on
# all workers; they are, because all workers trace the same program. Strategies number their own
# groups from 1.
_GROUP_KEY = 1 << 20
_instance_keys = itertools.count()
_rehearsed = threading.local()
_varying_notes: list[Callable[[], None]] = []


def all_reduce_sum(values: Any) -> Any:
    """Returns sums over all replicas; call it in replica context.

    Args:
        values: a tensor, IndexedSlices, or a list of tensors, which is one all-reduce.
    """
    if (part := getattr(_rehearsed, "part", None)) is not None:
        return part.sum(values)
    context = tf.distribute.get_replica_context()
    if context.num_replicas_in_sync == 1:
        return values
    if any(_varies(each) for each in tf.nest.flatten(values)):
        for note in _varying_notes:
            note()
    if is_gathered(values, context.strategy):
        return _sum_of_gathered(values, context.num_replicas_in_sync)
    return context.all_reduce(tf.distribute.ReduceOp.SUM, values)


@contextlib.contextmanager
def varying_noted(note: Callable[[], None]) -> Iterator[None]:
    """Inside the block, ``note`` is called for each all-reduce whose shape may vary by step."""
    _varying_notes.append(note)
    try:
        yield
    finally:
        _varying_notes.remove(note)


def _varies(values: Any) -> bool:
    return isinstance(values, tf.IndexedSlices) or not values.shape.is_fully_defined()


def replica_index() -> Any:
    """Returns the index of the replica that is traced or, in a rehearsal, of the part."""
    if (part := getattr(_rehearsed, "part", None)) is not None:
        return part.index
    return tf.distribute.get_replica_context().replica_id_in_sync_group


class Part(Protocol):
    """A part of a batch that takes a replica's place in a rehearsal."""

    @property
    def index(self) -> int:
        """Index of the part."""

    def sum(self, values: Any) -> Any:
        """Returns the sum over all parts."""


@contextlib.contextmanager
def rehearsed(part: Part) -> Iterator[None]:
    """Inside the block, this thread computes a part of a batch instead of a replica's share."""
    _rehearsed.part = part
    try:
        yield
    finally:
        _rehearsed.part = None


def is_gathered(values: Any, strategy: tf.distribute.Strategy) -> bool:
    """Returns whether every worker gathers the values of all others and adds them up itself.

    Gathering G bytes from each of R workers takes R - 1 hops of G bytes. A ring all-reduce takes
    2 (R - 1) hops of G / R bytes. If a link carries h bytes in the time of a message, gathering is
    faster up to G = h R / (R - 2). On two workers that would be always, but tensors that exceed the
    processors' caches are slower to gather; so the limit is h R / (R - 1).

    Only single tensors between CPUs are gathered: NCCL is better at it, and TensorFlow gathers
    neither bfloat16 nor tensors of unknown size.
    """
    replicas = strategy.num_replicas_in_sync
    return (
        isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy)
        and not tf.config.list_logical_devices("GPU")  # so each worker has one replica
        and isinstance(values, tf.Tensor)
        and values.dtype in (tf.float32, tf.float16, tf.float64, tf.int32, tf.int64)
        and values.shape.is_fully_defined()
        and (replicas - 1) * values.shape.num_elements() * values.dtype.size
        <= replicas * BYTES_PER_HOP
    )


def _sum_of_gathered(value: tf.Tensor, replicas: int) -> tf.Tensor:
    """Gathers and adds up; TensorFlow sorts AddN's inputs by name, so all workers agree."""
    gathered = tf.raw_ops.CollectiveGatherV2(
        input=value[tf.newaxis],
        group_size=replicas,
        group_key=_GROUP_KEY,
        instance_key=next(_instance_keys),
        ordering_token=[],
        communication_hint="ring",
    )
    return tf.add_n(tf.unstack(gathered, replicas))
