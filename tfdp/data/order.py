"""Which examples make global batch k: a pure function of (seed, step).

An epoch's order is a permutation of the examples, or of runs of consecutive examples.
``tf.random.experimental.index_shuffle`` computes it at any position. A global batch is a range of
positions, and a replica's slice is a range of those. So the order depends neither on the number of
workers nor on where a run was resumed, and a checkpoint needs no input state.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import tensorflow as tf

from tfdp.data.replica_batch import bounds
from tfdp.errors import BadInput

Number = Any  # a whole number, or an int64 scalar tensor


@dataclasses.dataclass(frozen=True)
class Order:
    """The order in which a run of any length takes the examples of a source.

    Args:
        examples: length of the source, at least 1.
        global_batch_size: examples per update over all replicas; the last batch of an epoch may be
            smaller.
        seed: the run's seed.
        shuffle: whether each epoch has its own permutation; if not, it has the source's order.
        run_length: number of consecutive examples that stay together when shuffled, for sources
            that read a run faster than single examples.

    Raises:
        BadInput: if a number is out of range.
    """

    examples: int
    global_batch_size: int
    seed: int = 0
    shuffle: bool = True
    run_length: int = 1

    def __post_init__(self) -> None:
        if self.examples < 1:
            raise BadInput("the source is empty: it has to have at least one example")
        if self.global_batch_size < 1:
            raise BadInput(f"global_batch_size is {self.global_batch_size}: it has to be 1 or more")
        if self.run_length < 1:
            raise BadInput(f"run_length is {self.run_length}: it has to be 1 or more")

    @property
    def steps_per_epoch(self) -> int:
        """Updates in an epoch, including a smaller last one."""
        return -(-self.examples // self.global_batch_size)

    @property
    def last_batch_size(self) -> int:
        """Examples in the last batch of an epoch."""
        return self.examples - (self.steps_per_epoch - 1) * self.global_batch_size

    @property
    def smallest_batch_size(self) -> int:
        """Examples in the smallest global batch."""
        return min(self.global_batch_size, self.last_batch_size)

    def examples_before(self, step: Number) -> Number:
        """Returns the number of examples in the updates before ``step``, over all epochs."""
        epoch, batch = step // self.steps_per_epoch, step % self.steps_per_epoch
        return epoch * self.examples + batch * self.global_batch_size

    def batch_size(self, step: Number) -> Number:
        """Returns the number of examples in the global batch of ``step``."""
        return self.examples_before(step + 1) - self.examples_before(step)

    # AutoGraph would take a quarter of a second to convert all called functions, for nothing.
    @tf.autograph.experimental.do_not_convert
    def slice(
        self, step: tf.Tensor, replica: tf.Tensor, replicas: int, at_least: int = 0
    ) -> tuple[tf.Tensor, ...]:
        """Returns the examples of one replica at one step.

        Args:
            step: int64 scalar, number of earlier updates.
            replica: int64 scalar in ``[0, replicas)``.
            replicas: number of replicas that share the global batch.
            at_least: 1 gives a replica without examples one of another replica.

        Returns:
            ``epoch`` (int64 scalar) and ``indices`` (int64[n]) into the source. The lengths of
            slices differ by at most one. The concatenated slices of all replicas are the global
            batch, for any number of replicas.
        """
        epoch, batch = step // self.steps_per_epoch, step % self.steps_per_epoch
        first, size = batch * self.global_batch_size, self.batch_size(step)
        start, stop = bounds(size, replica, replicas)
        positions = first + tf.range(start, tf.maximum(stop, start + at_least))
        return epoch, self.indices(epoch, positions)

    def indices(self, epoch: tf.Tensor, positions: tf.Tensor) -> tf.Tensor:
        """Returns indices into the source (int64[n]) at ``positions`` (int64[n]) of ``epoch``."""
        if not self.shuffle:
            return positions
        seed = tf.random.experimental.stateless_fold_in(
            to_stateless_seed(self.seed), tf.cast(epoch, tf.int32)
        )
        full_runs, rest = divmod(self.examples, self.run_length)
        if not rest:
            return self._shuffle_full_runs(positions, seed, full_runs)
        # index_shuffle permutes runs of equal length only. So the shorter last run is inserted at
        # a random place among the shuffled full runs.
        first = self.run_length * tf.random.stateless_uniform(
            [], tf.random.experimental.stateless_fold_in(seed, 1), 0, full_runs + 1, tf.int64
        )
        others = tf.where(positions < first, positions, tf.maximum(positions - rest, 0))
        return tf.where(
            (first <= positions) & (positions < first + rest),
            full_runs * self.run_length + positions - first,
            self._shuffle_full_runs(others, seed, full_runs) if full_runs else others,
        )

    def _shuffle_full_runs(
        self, positions: tf.Tensor, seed: tf.Tensor, full_runs: int
    ) -> tf.Tensor:
        """Returns indices at ``positions`` of an epoch that consists of ``full_runs`` full runs."""
        # The op refuses an empty vector (an empty share), so a 0 is appended and removed again.
        runs = tf.concat([positions // self.run_length, [0]], axis=0)
        shuffled = tf.random.experimental.index_shuffle(
            runs, seed=seed, max_index=tf.constant(full_runs - 1, tf.int64)
        )[:-1]
        return shuffled * self.run_length + positions % self.run_length


def to_stateless_seed(seed: int) -> tf.Tensor:
    """Returns a run's seed (any 64-bit integer) as int32[2], the form that stateless ops take."""
    words = [seed & 0xFFFFFFFF, seed >> 32 & 0xFFFFFFFF]
    return tf.constant([word - (1 << 32) if word >> 31 else word for word in words], tf.int32)
