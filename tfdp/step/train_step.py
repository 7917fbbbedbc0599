"""One update of a model: what every replica computes on its share of a global batch.

An update is Keras's own ``train_step``, or the model's override of it. Only the way in which
replicas combine is ours. Each replica's gradients are weighted by its share of the global batch
(``tfdp.step.share``), so their sum is the gradient that one replica would compute. They are summed
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

from tfdp.data.pipeline import Batches
from tfdp.data.replica_batch import ReplicaBatch, micro_batches
from tfdp.errors import BadInput
from tfdp.log import say_once_on_chief
from tfdp.step import batch_norm, keras_private, random_draws, tapes
from tfdp.step.all_reduce import all_reduce_sum, varying_noted
from tfdp.step.building import traceable_step
from tfdp.step.clock import time_s
from tfdp.step.gradients import GradientAllReduce
from tfdp.step.logs import StepLogs
from tfdp.step.losses import ShareLosses
from tfdp.step.optimizers import with_periodic_work
from tfdp.step.per_compile import function_of, once_per_compile
from tfdp.step.replicated_states import ReplicatedStates
from tfdp.step.rules import Rules, kept_rules
from tfdp.step.share import Combination, Share, add_gradients, as_replica_batch, share_of
from tfdp.whereabouts import STEP, marked


class StepsReport(NamedTuple):
    """What a worker's steps took besides computing, summed over the steps, and what they read.

    Args:
        input_s: waiting for the next batch.
        reduce_s: from this worker's last gradient to the sum over all workers.
        digest: of all global batches that this worker has read, see ``ReplicaBatch``.
    """

    input_s: float
    reduce_s: float
    digest: int


class _Replica(threading.local):
    """The state of one replica while its step is traced; MirroredStrategy gives each a thread."""

    def __init__(self) -> None:
        self.share: Share  # of the global batch
        self.micro_share: Share  # the micro-batch that is being traced
        self.micro_step = 0
        self.calls = 0  # that have a rule, in this micro-batch
        self.applies = 0  # of optimizers, in this micro-batch
        self.is_weighted = False  # whether a tape's gradients were weighted
        self.has_own_rows = False  # whether the rows of a share were taken here, not by TensorFlow
        self.gradients: dict[int, list[Any]] = {}  # sums over micro-batches, by call
        # Variables assigned in this step and not averaged yet; keys are ids.
        self.assigned: dict[int, keras.Variable] = {}
        self.reduce_s: list[tf.Tensor] = []
        self.graph: Any = None  # in which the step is traced


class TrainStep:
    """One update on all replicas.

    Args:
        model: a built and compiled model.
        smallest_batch: a global batch has at least so many examples; 0 if that is unknown.
        draws_from: added to the step that random layers draw from.
        accumulate_steps: number of micro-batches in which a replica computes its share.
        all_reduce: how gradients are summed over replicas, its pack size chosen.
    """

    def __init__(
        self,
        model: keras.Model,
        smallest_batch: int,
        *,
        draws_from: int = 0,
        accumulate_steps: int = 1,
        all_reduce: GradientAllReduce,
    ) -> None:
        self._model = model
        self._smallest_batch = smallest_batch
        self._draws_from = draws_from
        self._accumulate_steps = accumulate_steps
        self._all_reduce = all_reduce
        self._replicas = model.distribute_strategy.num_replicas_in_sync
        self._rules = kept_rules(model, "train_step") or Rules()
        self._losses = ShareLosses(self._rules)
        self._replica = _Replica()
        self._step = traceable_step(model, "train_step")
        self.logs = StepLogs(model, "train_step", self._rules)
        self.is_one_share = self._replicas * accumulate_steps == 1
        self.has_varying_shapes = False  # in all-reduces; known once the step is traced

    def update(self, batch: Any, step: tf.Tensor) -> tf.Tensor:
        """Runs one update; returns the seconds (float64 scalar) of this worker's all-reduce."""
        strategy = self._model.distribute_strategy
        with self._keras_adapted(step), _trainable_as_at_first(self._model):
            reduce_s = strategy.run(self._on_replica, args=(batch,))
        return strategy.experimental_local_results(reduce_s)[0]

    @tf.autograph.experimental.do_not_convert
    def _on_replica(self, batch: Any) -> tf.Tensor:
        """Runs the model's ``train_step`` on each micro-batch of this replica's share."""
        replica, model = self._replica, self._model
        replica.gradients, replica.assigned, replica.reduce_s = {}, {}, []
        replica.graph = tf.compat.v1.get_default_graph()
        # If the size of a share is unknown, whatever has a known size has no row for each example.
        replica.has_own_rows = isinstance(batch, ReplicaBatch)
        batch = as_replica_batch(batch)
        replica.share = share_of(batch, self._smallest_batch, self._accumulate_steps)
        states = ReplicatedStates(self._rules.states if self._replicas > 1 else ())
        for replica.micro_step, piece in enumerate(micro_batches(batch, self._accumulate_steps)):
            replica.calls, replica.applies, replica.is_weighted = 0, 0, False
            micro_share = dataclasses.replace(replica.share, examples=piece.examples)
            replica.micro_share = micro_share
            with self._losses.of(micro_share, model):
                returned = self._step(piece.data)
                self.logs.keep(returned, micro_share, is_first=replica.micro_step == 0)
        if self._replicas > 1:
            if late := self._take_statistics():  # assigned after the updates
                self._average(late, all_reduce_sum(self._weighted(late)))
            states.combine(replica.share)
        return tf.add_n(replica.reduce_s or [tf.constant(0.0, tf.float64)])

    def _at_tape(self, compute: Callable[[Any], list[Any]]) -> list[Any]:
        """Replaces the gradients with respect to variables that a tape computes."""
        if self.is_one_share or self._rules.weighted_at == "apply":
            return compute(None)
        share = self._replica.micro_share
        gradients = compute(share.contribution(tf.constant(1.0, tf.float64), self._next_rule()))
        self._replica.is_weighted = True
        if self._rules.summed_at == "apply":
            return gradients
        totals = self._sum(gradients, self._replica.calls)
        assert totals is not None  # there is one micro-batch
        return totals

    def _at_apply(
        self, optimizer: Any, gradients: list[Any], variables: list[Any]
    ) -> list[Any] | None:
        """Replaces the start of every ``optimizer.apply``."""
        replica = self._replica
        call, replica.applies = replica.applies, replica.applies + 1
        if self.is_one_share or self._rules.summed_at == "tape":
            return gradients
        if self._rules.weighted_at == "apply" or not replica.is_weighted:
            how = self._next_rule()
            gradients = [
                each if each is None else replica.micro_share.contribution(each, how)
                for each in gradients
            ]
        return self._sum(gradients, call)

    def _next_rule(self) -> Combination:
        """Returns how the gradients of the next call combine, in this micro-batch."""
        self._replica.calls += 1
        return self._rules.update(self._replica.calls - 1)

    def _sum(self, gradients: list[Any], call: int) -> list[Any] | None:
        """Sums weighted gradients over this replica's micro-batches, then over all replicas.

        None means that more micro-batches follow, so nothing is applied yet.
        """
        replica = self._replica
        places = [i for i, gradient in enumerate(gradients) if gradient is not None]
        if not places:
            return gradients
        own = [replica.micro_share.zero_if_empty(gradients[i]) for i in places]
        indices = [self._equal_indices(each) for each in own]
        own = [
            each if of_rows is None else each.values
            for each, of_rows in zip(own, indices, strict=True)
        ]
        if earlier := replica.gradients.get(call):
            own = [add_gradients(*pair) for pair in zip(earlier, own, strict=True)]
        replica.gradients[call] = own
        if replica.micro_step < self._accumulate_steps - 1:
            return None
        statistics = self._take_statistics()
        began_s = time_s(after=own)
        totals = self._all_reduce.sum(own, self._weighted(statistics))
        if tf.compat.v1.get_default_graph() is replica.graph:  # and not a condition's
            replica.reduce_s.append(time_s(after=totals) - began_s)
        self._average(statistics, totals[len(own) :])
        totals = [
            total if of_rows is None else tf.IndexedSlices(total, of_rows, gradients[i].dense_shape)
            for total, of_rows, i in zip(totals, indices, places, strict=False)
        ]
        total_at = dict(zip(places, totals, strict=True))
        return [total_at.get(i) for i in range(len(gradients))]

    def _equal_indices(self, gradient: Any) -> tf.Tensor | None:
        """Returns the indices of a gradient's rows if they are the same on all replicas, or None.

        So are those of a table of positions. One process has each row once, and optimizers make a
        difference between a row and two with the same index.
        """
        if not isinstance(gradient, tf.IndexedSlices) or not self._replica.has_own_rows:
            return None
        return gradient.indices if gradient.values.shape[0] is not None else None

    def _take_statistics(self) -> list[keras.Variable]:
        """Returns the float weights that layers assigned since the last call: moving averages."""
        assigned, self._replica.assigned = self._replica.assigned, {}
        ruled = {id(each.variable) for each in self._rules.states if not each.is_averaged}
        return [
            weight
            for weight in self._model.non_trainable_weights
            if id(weight) in assigned and id(weight) not in ruled and weight.value.dtype.is_floating
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
        """Inside the block, Keras computes shares, and gradients are summed over replicas."""
        replica = self._replica
        with (
            keras_private.seeds_drawn_from(self._draws_from + step),
            random_draws.stateless(random_draws.of_step(self._draws_from + step)),
            keras_private.reduced_first(self._at_apply),
            tapes.adapted(self._at_tape),
            batch_norm.fused(),
            varying_noted(self._note_varying_shapes),
            keras_private.assignments_noted(lambda each: replica.assigned.update({id(each): each})),
            self.logs.noted(),
            contextlib.nullcontext() if self.is_one_share else self._losses.adapted(),
        ):
            yield

    def _note_varying_shapes(self) -> None:
        self.has_varying_shapes = True

    def report_losses(self) -> None:
        """Warns people, once, of losses that micro-batches don't compute as a whole batch does."""
        if self._accumulate_steps > 1:
            for note in sorted(self._losses.notes):
                say_once_on_chief(keras_private.NOTES[note])


class TrainSteps(NamedTuple):
    """The updates of a model.

    Args:
        run: runs updates; a function of an iterator over batches, the number of earlier updates,
            and the number of updates to run.
        read_logs: returns the logs of the last update by name, over all replicas; a collective.
    """

    run: Callable[[Any, int, int], StepsReport]
    read_logs: Callable[[], dict[str, Any]]


def _trainable_now(model: keras.Model) -> list[tuple[keras.Layer, bool]]:
    return [(layer, layer.trainable) for layer in keras_private.layers(model)]


_trainable_at_first = once_per_compile(_trainable_now)


@contextlib.contextmanager
def _trainable_as_at_first(model: keras.Model) -> Iterator[None]:
    """Inside the block, those layers are trainable that were so in the first update of a compile.

    Keras traces its step once per ``compile``: a later change of ``trainable`` has no effect.
    """
    now, at_first = _trainable_now(model), _trainable_at_first(model)
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
) -> TrainSteps:
    """Returns what runs many updates in one call into TensorFlow.

    Args:
        model: a built and compiled model.
        batches: the training batches.
        draws_from: see ``TrainStep``.
        accumulate_steps: see ``TrainStep``.
        all_reduce: see ``TrainStep``.
    """
    train_step = TrainStep(
        model,
        batches.smallest_batch,
        draws_from=draws_from,
        accumulate_steps=accumulate_steps,
        all_reduce=all_reduce,
    )
    replicas = model.distribute_strategy.num_replicas_in_sync

    def run_steps(iterator: Any, first_step: tf.Tensor, steps: tf.Tensor) -> tuple[tf.Tensor, ...]:
        input_s = reduce_s = tf.constant(0.0, tf.float64)
        digest = tf.constant(0, tf.int64)
        for i in tf.range(steps):
            batch, waited_s = _next_batch(iterator)
            input_s += waited_s
            if isinstance(batch, ReplicaBatch):
                digest = model.distribute_strategy.experimental_local_results(batch.digest)[0]
            update = functools.partial(train_step.update, batch, first_step + i)
            reduce_s += with_periodic_work(model.optimizer, update, replicas)
        return input_s, reduce_s, digest

    run = function_of(model, run_steps)

    @marked(STEP, input="iterator")
    def call(iterator: Any, first_step: int, steps: int) -> StepsReport:
        # Within one call, TensorFlow requires a collective to keep its first shape. The gradient of
        # an embedding has a row for every token, rows that are gathered have one for every example,
        # and the last batch may have fewer of them.
        per_call = 1 if train_step.has_varying_shapes and replicas > 1 else steps
        input_s, reduce_s, digest = 0.0, 0.0, 0
        for step in range(first_step, first_step + steps, per_call):
            with _conditions_explained():
                took = run(iterator, tf.constant(step, tf.int64), tf.constant(per_call, tf.int64))
            input_s, reduce_s = input_s + float(took[0]), reduce_s + float(took[1])
            digest = int(took[2])
        train_step.report_losses()
        return StepsReport(input_s, reduce_s, digest)

    return TrainSteps(call, train_step.logs.read)


@contextlib.contextmanager
def _conditions_explained() -> Iterator[None]:
    """Replaces TensorFlow's error for an update within a condition of the graph."""
    try:
        yield
    except RuntimeError as error:
        if "merge_call" not in str(error):
            raise
        raise BadInput(
            "train_step calls an optimizer within a condition or loop of the graph (tf.cond, "
            "tf.range, an `if` on a tensor), where replicas can't sum gradients. Call it at every "
            "step: to accumulate gradients, use the optimizer's gradient_accumulation_steps or "
            "tfdp's accumulate_steps; to leave an update out, tf.where on the gradients; for "
            "several updates, Python's range"
        ) from error


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
