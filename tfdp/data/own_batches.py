"""Whole batches for a worker that computes alone: of all batches of some data, its own ones.

Elsewhere (``tfdp.data.pipeline``) all workers compute each batch together. Here a worker gets all
rows of a batch, divided over its own replicas only, and no other worker needs to be there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from tfdp.data.batch_digest import batch_digest
from tfdp.data.order import Order
from tfdp.data.preprocessing import (
    Preprocess,
    as_element,
    as_tuple,
    make_dataset_preprocess,
    make_source_reader,
)
from tfdp.data.replica_batch import ReplicaBatch, count_rows, of_replica, take_rows
from tfdp.data.sources import Source
from tfdp.errors import BadInput

_READ_AHEAD = 2  # batches; memory should not grow with them


class WholeBatch(NamedTuple):
    """A batch, as one worker computes it.

    Args:
        number: int64 scalar, number of earlier batches in the data.
        rows: int64 scalar, the number of its rows.
        digest: int64 scalar, digest of all batches up to this one; 0 for a source.
        shares: what each replica of this worker gets of it. Of a batch that another worker
            computes, the first row.
    """

    number: tf.Tensor
    rows: tf.Tensor
    digest: tf.Tensor
    shares: tuple[ReplicaBatch, ...]


def of_source(
    source: Source,
    batch_size: int,
    ranges: Sequence[tuple[int, int]],
    local_replicas: int,
    preprocess: Preprocess | None,
) -> tf.data.Dataset:
    """Returns a dataset of ``WholeBatch``: some batches of a source in its order.

    Args:
        source: the source.
        batch_size: rows of a batch.
        ranges: of the batches to read: the first number, and that after the last, of each range.
        local_replicas: number of replicas of this worker.
        preprocess: applied to the features of each example.
    """
    order = Order(len(source), batch_size, shuffle=False)
    read = make_source_reader(source, preprocess, training=False, seed=0)

    @tf.autograph.experimental.do_not_convert
    def whole_batch(number: tf.Tensor) -> WholeBatch:
        rows = tf.cast(order.batch_size(number), tf.int64)
        batch = read(np.int64(0), number * batch_size + tf.range(rows))
        no_digest = tf.constant(0, tf.int64)
        return WholeBatch(number, rows, no_digest, _shares(as_element(batch), local_replicas))

    dataset = tf.data.Dataset.from_tensor_slices(np.array(ranges, np.int64).reshape(-1, 2))
    dataset = dataset.flat_map(lambda each: tf.data.Dataset.range(each[0], each[1]))
    return dataset.map(whole_batch, num_parallel_calls=tf.data.AUTOTUNE).prefetch(_READ_AHEAD)


def of_dataset(
    dataset: tf.data.Dataset,
    is_own: Callable[[tf.Tensor], tf.Tensor],
    local_replicas: int,
    preprocess: Preprocess | None,
) -> tf.data.Dataset:
    """Returns a dataset of ``WholeBatch``: all batches of a dataset, with the own ones' data.

    Args:
        dataset: batches.
        is_own: returns whether this worker computes the batch of a number (int64 scalar).
        local_replicas: number of replicas of this worker.
        preprocess: applied to the features of each example.
    """
    apply = preprocess and make_dataset_preprocess(preprocess, dataset.element_spec)

    @tf.autograph.experimental.do_not_convert
    def numbered(state: tuple[Any, Any], *element: Any) -> Any:
        (number, before), batch = state, _joined(element)
        digest = batch_digest(batch, before)
        return (number + 1, digest), (number, digest, batch)

    @tf.autograph.experimental.do_not_convert
    def whole_batch(number: tf.Tensor, digest: tf.Tensor, batch: Any) -> WholeBatch:
        rows = count_rows(batch)
        batch = take_rows(batch, 0, tf.where(is_own(number), rows, tf.minimum(rows, 1)))
        if apply is not None:
            batch = apply(np.int64(0), *as_tuple(batch))
        return WholeBatch(number, tf.cast(rows, tf.int64), digest, _shares(batch, local_replicas))

    dataset = dataset.scan((np.int64(0), np.int64(0)), numbered)
    return dataset.map(whole_batch, num_parallel_calls=tf.data.AUTOTUNE).prefetch(_READ_AHEAD)


def check_order_is_fixed(dataset: tf.data.Dataset) -> None:
    """Raises BadInput if a dataset shows that its rows come in another order each time."""
    if "Shuffle" in dataset.__debug_string__():
        raise BadInput(
            "the dataset to predict is shuffled, so its rows have no order of their own in which "
            "to write predictions: leave out shuffle() (tf.data.Dataset.list_files shuffles, too, "
            "without shuffle=False)"
        )
    if dataset.options().deterministic is False:
        raise BadInput(
            "the dataset to predict has the option deterministic=False, so its rows come in "
            "another order each time: leave the option out"
        )


def _joined(element: tuple[Any, ...]) -> Any:
    """Returns a dataset's element, given the arguments with which ``scan`` calls a function."""
    return element[0] if len(element) == 1 else element


def _shares(batch: Any, local_replicas: int) -> tuple[ReplicaBatch, ...]:
    return tuple(of_replica(batch, replica, local_replicas) for replica in range(local_replicas))
