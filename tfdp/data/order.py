"""Which examples make global batch k: a pure function of (seed, step).

Nothing here remembers anything. An epoch's order is a permutation (of examples, or of runs of
consecutive ones) that can be asked for any of its positions
(``tf.random.experimental.index_shuffle``), a global batch is a stretch of positions, and a
replica's slice is a stretch of those. So the order depends neither on how many workers there are
nor on where a run was resumed, and a checkpoint needs no input state.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import tensorflow as tf

from tfdp.errors import BadInput

Number = Any  # a whole number, or an int64 scalar tensor


@dataclasses.dataclass(frozen=True)
class Order:
    """The order in which a run of any length sees ``examples`` examples.

    Args:
        examples: length of the source, at least 1.
        global_batch_size: examples per update over all replicas; the last batch of an epoch has
            what is left.
        seed: the run's seed.
        shuffle: whether each epoch has a permutation of its own, or the source's order.
        run_length: consecutive examples that stay together when shuffled; a source that reads
            runs faster than single examples names it.

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
        """Updates in an epoch, the last and maybe shorter one included."""
        return -(-self.examples // self.global_batch_size)

    @property
    def last_batch_size(self) -> int:
        """Examples in the last batch of an epoch."""
        return self.examples - (self.steps_per_epoch - 1) * self.global_batch_size

    def leaves_idle(self, parts: int) -> bool:
        """Whether some batch has fewer examples than the parts that it is split into."""
        return min(self.global_batch_size, self.last_batch_size) < parts

    def examples_before(self, step: Number) -> Number:
        """Examples that the updates before ``step`` took, over all epochs."""
        epoch, batch = step // self.steps_per_epoch, step % self.steps_per_epoch
        return epoch * self.examples + batch * self.global_batch_size

    def batch_size(self, step: Number) -> Number:
        """Examples in the global batch of a step."""
        return self.examples_before(step + 1) - self.examples_before(step)

    # AutoGraph would take a quarter of a second to convert all that it calls, for nothing.
    @tf.autograph.experimental.do_not_convert
    def slice(self, step: tf.Tensor, replica: tf.Tensor, replicas: int) -> tuple[tf.Tensor, ...]:
        """The examples of one replica at one step.

        Args:
            step: int64 scalar, updates done before this one.
            replica: int64 scalar in ``[0, replicas)``.
            replicas: how many replicas share the global batch.

        Returns:
            ``epoch`` (int64 scalar) and ``indices`` (int64[n]) into the source. Slices differ in
            length by one at the most; the slices of all replicas, one after the other, are the
            global batch whatever their number.
        """
        epoch, batch = step // self.steps_per_epoch, step % self.steps_per_epoch
        first, size = batch * self.global_batch_size, self.batch_size(step)
        positions = tf.range(
            first + size * replica // replicas, first + size * (replica + 1) // replicas
        )
        return epoch, self.indices(epoch, positions)

    def indices(self, epoch: tf.Tensor, positions: tf.Tensor) -> tf.Tensor:
        """Indices into the source (int64[n]) at ``positions`` (int64[n]) of ``epoch``."""
        if not self.shuffle:
            return positions
        seed = tf.random.experimental.stateless_fold_in(
            words_of(self.seed), tf.cast(epoch, tf.int32)
        )
        runs, rest = divmod(self.examples, self.run_length)
        if not rest:
            return self._of_full_runs(positions, seed, runs)
        # The last run is shorter. Only full ones can change places, so it is put among them.
        first = self.run_length * tf.random.stateless_uniform(
            [], tf.random.experimental.stateless_fold_in(seed, 1), 0, runs + 1, tf.int64
        )
        others = tf.where(positions < first, positions, tf.maximum(positions - rest, 0))
        return tf.where(
            (first <= positions) & (positions < first + rest),
            runs * self.run_length + positions - first,
            self._of_full_runs(others, seed, runs) if runs else others,
        )

    def _of_full_runs(self, positions: tf.Tensor, seed: tf.Tensor, runs: int) -> tf.Tensor:
        """Indices at ``positions`` of an epoch that had ``runs`` full runs and nothing else."""
        # One more than asked for, because the op refuses an empty vector: an idle replica's slice.
        places = tf.concat([positions // self.run_length, [0]], axis=0)
        shuffled = tf.random.experimental.index_shuffle(
            places, seed=seed, max_index=tf.constant(runs - 1, tf.int64)
        )[:-1]
        return shuffled * self.run_length + positions % self.run_length


def words_of(seed: int) -> tf.Tensor:
    """A run's seed (any 64-bit integer) as int32[2], the shape that stateless ops take."""
    words = [seed & 0xFFFFFFFF, seed >> 32 & 0xFFFFFFFF]
    return tf.constant([word - (1 << 32) if word >> 31 else word for word in words], tf.int32)
