"""Sums over all replicas."""

from __future__ import annotations

import itertools
from typing import Any

import tensorflow as tf

# What a link carries in the time that a message takes anyway: half a millisecond at 0.5 GB/s
# between CPUs over gRPC, 20 µs at 12 GB/s between GPUs.
BYTES_PER_HOP = 1 << 18
# TensorFlow tells collectives apart by these two, which have to be alike on all workers: they trace
# the same program. A strategy numbers its own groups from 1.
_GROUP = 1 << 20
_instances = itertools.count()


def summed(values: Any) -> Any:
    """The sums over all replicas of values that every one of them has.

    Args:
        values: a tensor, IndexedSlices, or a list of tensors, which is one all-reduce.
    """
    context = tf.distribute.get_replica_context()
    if context.num_replicas_in_sync == 1:
        return values
    if is_gathered(values, context.strategy):
        return _sum_of_gathered(values, context.num_replicas_in_sync)
    return context.all_reduce(tf.distribute.ReduceOp.SUM, values)


def is_gathered(values: Any, strategy: tf.distribute.Strategy) -> bool:
    """Whether every worker gets all others' values and adds them up itself.

    R values of G bytes then take R - 1 hops of G bytes; an all-reduce takes 2 (R - 1) of G / R
    bytes. Where a link carries h bytes in the time of a message, the former is faster up to
    G = h R / (R - 2). On two workers that is always, but then what is beyond the processors' caches
    is slower; so the limit is h R / (R - 1).

    Only single tensors between CPUs: NCCL does better. TensorFlow gathers neither bfloat16 nor what
    is not of a known size.
    """
    replicas = strategy.num_replicas_in_sync
    return (
        isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy)
        and not tf.config.list_logical_devices("GPU")  # then a worker has one replica
        and isinstance(values, tf.Tensor)
        and values.dtype in (tf.float32, tf.float16, tf.float64, tf.int32, tf.int64)
        and values.shape.is_fully_defined()
        and (replicas - 1) * values.shape.num_elements() * values.dtype.size
        <= replicas * BYTES_PER_HOP
    )


def _sum_of_gathered(value: tf.Tensor, replicas: int) -> tf.Tensor:
    """Added up in the order into which TensorFlow puts AddN's inputs, by name: alike everywhere."""
    gathered = tf.raw_ops.CollectiveGatherV2(
        input=value[tf.newaxis],
        group_size=replicas,
        group_key=_GROUP,
        instance_key=next(_instances),
        ordering_token=[],
        communication_hint="ring",
    )
    return tf.add_n(tf.unstack(gathered, replicas))
