"""One update of a model: what every replica computes on its share of a global batch.

An update is Keras's own ``train_step``, or the model's override of it. Only the way in which
replicas combine is ours. Losses are shares of the global batch's loss (``tfdp.step.share``), so the
sum of the replicas' gradients is the gradient that one replica would compute. Gradients are summed
before the optimizer clips, checks or applies anything.

``TrainStep.update`` is one update; ``train_steps`` runs many of them in one call into TensorFlow.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import threading
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from tfdp.data.order import Order
from tfdp.data.pipeline import Batches
from tfdp.step import batch_norm, keras_private, metrics
from tfdp.step.all_reduce import all_reduce_sum
from tfdp.step.clock import time_s
from tfdp.step.gradients import GradientAllReduce
from tfdp.step.keras_private import TracedLosses
from tfdp.step.optimizers import with_periodic_work
from tfdp.step.per_compile import function_of, once_per_compile
from tfdp.step.share import Share, add_gradients, count_examples, micro_batches, share_of


class StepSeconds(NamedTuple):
    """Seconds that a worker's steps took besides computing, summed over the steps.

    Args:
        input_s: waiting for the next batch.
        reduce_s: from this worker's last gradient to the sum over all workers.
    """

    input_s: float
    reduce_s: float


class _Replica(threading.local):
    """The state of one replica while its step is traced; MirroredStrategy gives each a thread."""

    def __init__(self) -> None:
        self.share: Share  # of the global batch
        self.micro_share: Share  # the micro-batch that is being traced
        self.micro_step = 0
        self.apply_calls = 0  # of optimizers, in this micro-batch
        self.gradients: dict[int, list[Any]] = {}  # sums over micro-batches, by apply call
        # Variables assigned in this step and not averaged yet; keys are ids.
        self.assigned: dict[int, keras.Variable] = {}
        self.reduce_s: list[tf.Tensor] = []


class TrainStep:
    """One update on all replicas.

    Args:
        model: a built and compiled model.
        order: gives the size of each global batch; None if only TensorFlow knows it.
        draws_from: added to the step that random layers draw from.
        accumulate_steps: number of micro-batches in which a replica computes its share.
        all_reduce: how gradients are summed over replicas, its pack size chosen.
    """

    def __init__(
        self,
        model: keras.Model,
        order: Order | None,
        *,
        draws_from: int = 0,
        accumulate_steps: int = 1,
        all_reduce: GradientAllReduce,
    ) -> None:
        self._model = model
        self._order = order
        self._draws_from = draws_from
        self._accumulate_steps = accumulate_steps
        self._all_reduce = all_reduce
        self._replicas = model.distribute_strategy.num_replicas_in_sync
        self._losses = TracedLosses()
        self._replica = _Replica()
        self.is_one_share = self._replicas * accumulate_steps == 1
        self.has_sparse_gradients = False  # known once the step is traced

    def update(self, batch: Any, step: tf.Tensor) -> tf.Tensor:
        """Runs one update; returns the seconds (float64 scalar) of this worker's all-reduce."""
        strategy = self._model.distribute_strategy
        with self._keras_adapted(step), _trainable_as_at_first(self._model):
            reduce_s = strategy.run(self._on_replica, args=(batch, step))
        return strategy.experimental_local_results(reduce_s)[0]

    @tf.autograph.experimental.do_not_convert
    def _on_replica(self, batch: Any, step: tf.Tensor) -> tf.Tensor:
        """Runs the model's ``train_step`` on each micro-batch of this replica's share."""
        replica, model = self._replica, self._model
        replica.gradients, replica.assigned, replica.reduce_s = {}, {}, []
        replica.share = share_of(batch, self._order, step, self._accumulate_steps)
        for replica.micro_step, piece in enumerate(micro_batches(batch, self._accumulate_steps)):
            replica.apply_calls = 0
            replica.micro_share = dataclasses.replace(replica.share, examples=count_examples(piece))
            with metrics.restored_if_empty(model, replica.micro_share):
                model.train_step(replica.micro_share.padded(piece))
        if self._replicas > 1 and (late := self._take_statistics()):  # assigned after the updates
            self._average(late, all_reduce_sum(self._weighted(late)))
        return tf.add_n(replica.reduce_s or [tf.constant(0.0, tf.float64)])

    def _reduce(self, gradients: list[Any]) -> list[Any] | None:
        """Sums gradients over this replica's micro-batches, then over all replicas.

        It replaces the start of every ``optimizer.apply``. None means that more micro-batches
        follow, so nothing is applied yet.
        """
        replica = self._replica
        places = [i for i, gradient in enumerate(gradients) if gradient is not None]
        self.has_sparse_gradients |= any(isinstance(gradients[i], tf.IndexedSlices) for i in places)
        if self.is_one_share or not places:
            return gradients
        own = [replica.micro_share.zero_if_empty(gradients[i]) for i in places]
        if not self._losses.are_shares:
            own = [replica.micro_share.scale_mean(gradient) for gradient in own]
        if earlier := replica.gradients.get(replica.apply_calls):
            own = [add_gradients(*pair) for pair in zip(earlier, own, strict=True)]
        replica.gradients[replica.apply_calls] = own
        replica.apply_calls += 1
        if replica.micro_step < self._accumulate_steps - 1:
            return None
        statistics = self._take_statistics()
        began_s = time_s(after=own)
        totals = self._all_reduce.sum(own, self._weighted(statistics))
        replica.reduce_s.append(time_s(after=totals) - began_s)
        self._average(statistics, totals[len(own) :])
        total_at = dict(zip(places, totals, strict=False))
        return [total_at.get(i) for i in range(len(gradients))]

    def _take_statistics(self) -> list[keras.Variable]:
        """Returns the float weights that layers assigned since the last call: moving averages."""
        assigned, self._replica.assigned = self._replica.assigned, {}
        return [
            weight
            for weight in self._model.non_trainable_weights
            if id(weight) in assigned and weight.value.dtype.is_floating
        ]

    def _weighted(self, statistics: list[keras.Variable]) -> list[tf.Tensor]:
        return [self._replica.share.times_examples(each.value) for each in statistics]

    def _average(self, statistics: list[keras.Variable], totals: list[tf.Tensor]) -> None:
        """Sets statistics to their mean over all examples.

        Otherwise each worker would evaluate with its own, and a checkpoint would contain only the
        chief's.
        """
        for each, total in zip(statistics, totals, strict=True):
            each.value.assign(self._replica.share.over_total(total, each.value.dtype))

    @contextlib.contextmanager
    def _keras_adapted(self, step: tf.Tensor) -> Iterator[None]:
        """Inside the block, Keras computes shares, and hands gradients to ``_reduce``."""
        replica = self._replica
        with (
            keras_private.seeds_drawn_from(self._draws_from + step),
            keras_private.reduced_first(self._reduce),
            batch_norm.fused(),
            keras_private.assignments_noted(lambda each: replica.assigned.update({id(each): each})),
            contextlib.nullcontext()
            if self.is_one_share
            else keras_private.losses_as_shares(self._losses, lambda: replica.micro_share),
        ):
            yield

    def report_losses(self) -> None:
        """Warns people, once, of losses that several shares may not compute as one does."""
        if not self.is_one_share:
            self._losses.report(accumulates=self._accumulate_steps > 1)


@once_per_compile
def _trainable_at_first(model: keras.Model) -> list[tuple[keras.Layer, bool]]:
    return keras_private.trainable_of_layers(model)


@contextlib.contextmanager
def _trainable_as_at_first(model: keras.Model) -> Iterator[None]:
    """Inside the block, those layers are trainable that were so in the first update of a compile.

    Keras traces its step once per ``compile``: a later change of ``trainable`` has no effect.
    """
    now, at_first = keras_private.trainable_of_layers(model), _trainable_at_first(model)
    if now == at_first or model.run_eagerly:
        yield
        return
    try:
        for layer, trainable in at_first:
            layer.trainable = trainable
        yield
    finally:
        for layer, trainable in now:
            layer.trainable = trainable


def train_steps(
    model: keras.Model,
    batches: Batches,
    *,
    draws_from: int = 0,
    accumulate_steps: int = 1,
    all_reduce: GradientAllReduce,
) -> Callable[[Any, int, int], StepSeconds]:
    """Returns a function that runs many updates in one call into TensorFlow.

    Args:
        model: a built and compiled model.
        batches: the training batches.
        draws_from: see ``TrainStep``.
        accumulate_steps: see ``TrainStep``.
        all_reduce: see ``TrainStep``.

    Returns:
        A function of an iterator over ``batches``, the number of earlier updates, and the number of
        updates to run.
    """
    train_step = TrainStep(
        model,
        batches.order,
        draws_from=draws_from,
        accumulate_steps=accumulate_steps,
        all_reduce=all_reduce,
    )
    replicas = model.distribute_strategy.num_replicas_in_sync

    def run_steps(iterator: Any, first_step: tf.Tensor, steps: tf.Tensor) -> tuple[tf.Tensor, ...]:
        input_s = reduce_s = tf.constant(0.0, tf.float64)
        for i in tf.range(steps):
            batch, waited_s = _next_batch(iterator)
            input_s += waited_s
            update = functools.partial(train_step.update, batch, first_step + i)
            reduce_s += with_periodic_work(model.optimizer, update, replicas)
        return input_s, reduce_s

    run = function_of(model, run_steps)

    def call(iterator: Any, first_step: int, steps: int) -> StepSeconds:
        # Within one call, TensorFlow requires a collective to keep its first shape. The gradient of
        # an embedding has a row for every token, and the last batch may have fewer of them.
        per_call = 1 if train_step.has_sparse_gradients and replicas > 1 else steps
        input_s = reduce_s = 0.0
        for step in range(first_step, first_step + steps, per_call):
            took = run(iterator, tf.constant(step, tf.int64), tf.constant(per_call, tf.int64))
            input_s, reduce_s = input_s + float(took[0]), reduce_s + float(took[1])
        train_step.report_losses()
        return StepSeconds(input_s, reduce_s)

    return call


def _next_batch(iterator: Any) -> tuple[Any, tf.Tensor]:
    """Returns the next batch, and the seconds (float64 scalar) until it arrived."""
    began_s = tf.timestamp()
    with tf.control_dependencies([began_s]):
        batch = next(iterator)
    leaves = tf.nest.flatten(batch, expand_composites=True)
    arrived_s = time_s(after=leaves)
    # Computing waits until the clock is read. On few cores it might otherwise come first.
    with tf.control_dependencies([arrived_s]):
        leaves = [tf.identity(leaf) for leaf in leaves]
    batch = tf.nest.pack_sequence_as(batch, leaves, expand_composites=True)
    return batch, arrived_s - began_s
