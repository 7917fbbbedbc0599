"""The steps: what every replica does with its part of a batch.

An update is Keras's own ``train_step``, or the one that the model overrides it with. Only how
replicas come together is ours: losses are parts of the global batch's (``tfdp.parts``), so that the
sum of the gradients is what one replica would compute, and they are summed before the optimizer
clips, checks or applies anything.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import threading
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeVar

import keras
import tensorflow as tf

from tfdp import batch_norm, keras_private, parts
from tfdp.exchange import Exchange
from tfdp.feed import Batches
from tfdp.keras_private import Losses
from tfdp.order import Order
from tfdp.parts import Part, count_examples
from tfdp.sums import summed

Variables = list[tf.Variable]
Made = TypeVar("Made")


class Seconds(NamedTuple):
    """What a worker's steps took beside computing, summed over the steps.

    Args:
        input_s: waiting for the next batch.
        reduce_s: from this worker's last gradient to the sum of all workers'.
    """

    input_s: float
    reduce_s: float


class _Replica(threading.local):
    """What a replica notes while its step is traced; MirroredStrategy gives each a thread."""

    def __init__(self) -> None:
        self.whole: Part  # of the global batch
        self.part: Part  # the piece of it that is being traced
        self.piece = 0
        self.calls = 0  # of an optimizer, in this piece
        self.sums: dict[int, list[Any]] = {}  # gradients of the pieces so far, by call
        self.reduce_s: list[tf.Tensor] = []
        self.assigned: dict[int, keras.Variable] = {}  # and not averaged yet, by id


def train_steps(
    model: keras.Model,
    batches: Batches,
    *,
    draws_from: int = 0,
    accumulate_steps: int = 1,
    exchange: Exchange,
) -> Callable[[Any, int, int], Seconds]:
    """Makes the function that runs many updates in one call.

    Args:
        model: a built and compiled model.
        batches: what it will be given.
        draws_from: added to the step that random layers draw from.
        accumulate_steps: pieces in which a replica computes its part of a batch, one after the
            other, for one update.
        exchange: how gradients are summed over replicas.

    Returns:
        A function of an iterator over ``batches``, the number of updates done so far, and how
        many to do.
    """
    strategy = model.distribute_strategy
    replicas = strategy.num_replicas_in_sync
    is_whole = replicas * accumulate_steps == 1
    losses = Losses()
    here = _Replica()
    has_sparse = False  # known once the first call is traced

    def reduce(gradients: list[Any]) -> list[Any] | None:
        """Sums gradients over the pieces of this replica's part, then over the replicas."""
        nonlocal has_sparse
        places = [i for i, gradient in enumerate(gradients) if gradient is not None]
        has_sparse |= any(isinstance(gradients[i], tf.IndexedSlices) for i in places)
        if is_whole or not places:
            return gradients
        own = [here.part.counted(gradients[i]) for i in places]
        if not losses.are_parts:
            own = [here.part.of_mean(gradient) for gradient in own]
        if here.calls in here.sums:
            own = [parts.added(*pair) for pair in zip(here.sums[here.calls], own, strict=True)]
        here.sums[here.calls] = own
        here.calls += 1
        if here.piece < accumulate_steps - 1:
            return None
        statistics = _statistics(model, here.assigned)
        here.assigned = {}
        began_s = _now_s(after=own)
        totals = exchange.summed(own, _weighted(statistics, here.whole))
        here.reduce_s.append(_now_s(after=totals) - began_s)
        _average(statistics, totals[len(own) :], here.whole)
        filled = dict(zip(places, totals, strict=False))
        return [filled.get(i) for i in range(len(gradients))]

    @tf.autograph.experimental.do_not_convert
    def on_replica(batch: Any, step: tf.Tensor) -> tf.Tensor:
        here.sums, here.reduce_s, here.assigned = {}, [], {}
        here.whole = _part(batch, batches.order, step, accumulate_steps)
        for here.piece, piece in enumerate(parts.pieces(batch, accumulate_steps)):
            here.calls = 0
            here.part = dataclasses.replace(here.whole, examples=count_examples(piece))
            with _metrics_of(model, here.part):
                model.train_step(here.part.padded(piece))
        late = _statistics(model, here.assigned) if replicas > 1 else []
        if late:  # after the last update, or there is none
            _average(late, summed(_weighted(late, here.whole)), here.whole)
        return tf.add_n(here.reduce_s or [tf.constant(0.0, tf.float64)])

    def update(batch: Any, step: tf.Tensor) -> tf.Tensor:
        with (
            keras_private.seeds_drawn_from(draws_from + step),
            keras_private.reduced_first(reduce),
            batch_norm.fused(),
            keras_private.assignments_noted(lambda each: here.assigned.update({id(each): each})),
            contextlib.nullcontext()
            if is_whole
            else keras_private.losses_of(losses, lambda: here.part),
        ):
            reduce_s = strategy.run(on_replica, args=(batch, step))
        return strategy.experimental_local_results(reduce_s)[0]

    @tf.function
    def run(iterator: Any, first_step: tf.Tensor, steps: tf.Tensor) -> tuple[tf.Tensor, ...]:
        input_s = reduce_s = tf.constant(0.0, tf.float64)
        for i in tf.range(steps):
            began_s = tf.timestamp()
            with tf.control_dependencies([began_s]):
                batch = next(iterator)
            leaves = tf.nest.flatten(batch, expand_composites=True)
            arrived_s = _now_s(after=leaves)
            # Computing waits for the clock to be read: on few cores it might come first otherwise.
            with tf.control_dependencies([arrived_s]):
                leaves = [tf.identity(leaf) for leaf in leaves]
            batch = tf.nest.pack_sequence_as(batch, leaves, expand_composites=True)
            input_s += arrived_s - began_s
            reduce_s += _by_period(
                model.optimizer, functools.partial(update, batch, first_step + i), replicas
            )
        return input_s, reduce_s

    def call(iterator: Any, first_step: int, steps: int) -> Seconds:
        # Within a call, TensorFlow holds a collective to the shape that it had first, and sparse
        # gradients (of embeddings) have a row for every word of a batch, be it full or the last.
        at_once = 1 if has_sparse and replicas > 1 else steps
        input_s = reduce_s = 0.0
        for step in range(first_step, first_step + steps, at_once):
            took = run(iterator, tf.constant(step, tf.int64), tf.constant(at_once, tf.int64))
            input_s, reduce_s = input_s + float(took[0]), reduce_s + float(took[1])
        if not is_whole:
            losses.tell(accumulates=accumulate_steps > 1)
        return Seconds(input_s, reduce_s)

    return call


def _part(batch: Any, order: Order | None, step: tf.Tensor, accumulate_steps: int = 1) -> Part:
    """This replica's part of a global batch, known from the order or else asked of the others."""
    replicas = tf.distribute.get_replica_context().num_replicas_in_sync
    count = replicas * accumulate_steps
    examples = count_examples(batch)
    static_size = tf.nest.flatten(batch)[0].shape[0]
    if order is not None:
        may_be_empty = order.leaves_idle(count)
        return Part(examples, tf.cast(order.batch_size(step), tf.int32), count, may_be_empty)
    if static_size is not None:  # TensorFlow has split it evenly, or it would not be known
        may_be_empty = static_size < accumulate_steps
        return Part(examples, examples * replicas, count, may_be_empty)
    total = summed(tf.cast(examples, tf.float32))  # a GPU adds up floats best
    return Part(examples, tf.cast(total, tf.int32), count, may_be_empty=count > 1)


def _statistics(model: keras.Model, assigned: dict[int, keras.Variable]) -> list[keras.Variable]:
    """The weights among the variables that a step has assigned: what layers count and average."""
    return [
        weight
        for weight in model.non_trainable_weights
        if id(weight) in assigned and weight.value.dtype.is_floating
    ]


def _weighted(statistics: list[keras.Variable], whole: Part) -> list[tf.Tensor]:
    return [whole.times_examples(each.value) for each in statistics]


def _average(statistics: list[keras.Variable], totals: list[tf.Tensor], whole: Part) -> None:
    """Makes what replicas have assigned by themselves, moving averages, their mean over examples.

    Or every worker would evaluate with its own, and a checkpoint have those of the chief alone.
    """
    for each, total in zip(statistics, totals, strict=True):
        each.value.assign(whole.over_total(total, each.value.dtype))


@contextlib.contextmanager
def _metrics_of(model: keras.Model, part: Part) -> Iterator[None]:
    """Puts the metrics back after a step on a part that turns out to be empty.

    But for those that hold the outputs' losses: Keras weighs all batches alike in them, and what an
    empty part adds to a batch's loss is 0.
    """
    of_outputs = keras_private.loss_trackers(model)
    states = [
        variable.value
        for metric in (model.metrics if part.may_be_empty else ())
        if all(metric is not tracker for tracker in of_outputs)
        for variable in metric.variables
    ]
    before = [tf.identity(state) for state in states]
    yield
    for state, old in zip(states, before, strict=True):
        state.assign(tf.where(part.examples > 0, state, old))


def _by_period(optimizer: Any, run: Callable[[], tf.Tensor], replicas: int) -> tf.Tensor:
    """Runs an update, deciding out here whether the optimizer's periodic work is due."""
    update_every, overwrite_every = keras_private.periods(optimizer)
    if replicas == 1 or (update_every, overwrite_every) == (1, 0):
        return run()  # Keras's own decision will do
    is_update, overwrites = keras_private.due(optimizer)

    def decided(is_update: bool, overwrites: bool) -> tf.Tensor:
        with keras_private.periods_decided(is_update, overwrites):
            return run()

    def overwriting(is_update: bool) -> tf.Tensor:
        if not overwrite_every:
            return decided(is_update, False)
        return tf.cond(
            overwrites, lambda: decided(is_update, True), lambda: decided(is_update, False)
        )

    if update_every == 1:
        return overwriting(True)
    return tf.cond(is_update, lambda: overwriting(True), lambda: overwriting(False))


def _now_s(after: Any) -> tf.Tensor:
    """The time (s, float64 scalar) when tensors are there; nothing waits for it."""
    leaves = [each.values if isinstance(each, tf.IndexedSlices) else each for each in after]
    with tf.control_dependencies(leaves):
        return tf.timestamp()


def until_recompiled(make: Callable[[keras.Model], Made]) -> Callable[[keras.Model], Made]:
    """Makes what belongs to a model once, and again when the model was compiled anew.

    It is kept with the model, as Keras keeps its own functions, so that it goes when the model
    goes, and tracing is paid for once.
    """

    @functools.wraps(make)
    def kept(model: keras.Model) -> Made:
        compilation = keras_private.compilation(model)
        key = f"tfdp.{make.__name__}"
        if key not in vars(model) or vars(model)[key][0] is not compilation:
            vars(model)[key] = (compilation, make(model))
        return vars(model)[key][1]  # type: ignore[no-any-return]

    return kept


@until_recompiled
def test_steps(model: keras.Model) -> Callable[[Any, Order, int, int], None]:
    """Makes the function that evaluates many global batches in one call.

    Returns:
        A function of an iterator over batches, their order, the first step and how many to do.
    """
    test = _tester(model)

    @tf.function
    def run(
        iterator: Any, examples: int, batch_size: int, first: tf.Tensor, steps: tf.Tensor
    ) -> None:
        order = Order(examples, batch_size, shuffle=False)
        for i in tf.range(steps):
            test(next(iterator), order, first + i)

    def call(iterator: Any, order: Order, first: int, steps: int) -> None:
        first_step, count = tf.constant(first, tf.int64), tf.constant(steps, tf.int64)
        run(iterator, order.examples, order.global_batch_size, first_step, count)

    return call


@until_recompiled
def test_next(model: keras.Model) -> Callable[[Any, int], bool]:
    """Makes the function that evaluates the next batch of a dataset that TensorFlow splits.

    Returns:
        A function of an iterator and of how many batches were before; it tells whether there was
        another. The batch is drawn inside: its shape, seen from outside, may differ between
        workers, which would then trace different functions and never come together.
    """
    test = _tester(model)

    @tf.function
    def run(iterator: Any, step: tf.Tensor) -> tf.Tensor:
        batch = iterator.get_next_as_optional()
        if batch.has_value():
            test(batch.get_value(), None, step)
        return batch.has_value()

    return lambda iterator, step: bool(run(iterator, tf.constant(step, tf.int64)))


def _tester(model: keras.Model) -> Callable[[Any, Order | None, tf.Tensor], None]:
    strategy = model.distribute_strategy
    losses = Losses()
    here = _Replica()

    def test(batch: Any, order: Order | None, step: tf.Tensor) -> None:
        @tf.autograph.experimental.do_not_convert
        def on_replica(batch: Any) -> None:
            here.part = _part(batch, order, step)
            with _metrics_of(model, here.part):
                model.test_step(here.part.padded(batch))

        with (
            # Or what layers draw would depend on all that was evaluated before.
            keras_private.seeds_drawn_from(step),
            contextlib.nullcontext()
            if strategy.num_replicas_in_sync == 1
            else keras_private.losses_of(losses, lambda: here.part),
        ):
            strategy.run(on_replica, args=(batch,))

    return test


@until_recompiled
def predict_step(model: keras.Model) -> Callable[[Any, int], Any]:
    """Makes the function that predicts a batch, the how manieth; rows stay with their replicas."""
    strategy = model.distribute_strategy

    @tf.autograph.experimental.do_not_convert
    def on_replica(batch: Any) -> Any:
        examples = count_examples(batch)
        part = Part(examples, examples, parts=1, may_be_empty=strategy.num_replicas_in_sync > 1)
        rows = model.predict_step(part.padded(batch))
        return tf.nest.map_structure(lambda leaf: leaf[:examples], rows)

    @tf.function(reduce_retracing=True)
    def run(batch: Any, step: tf.Tensor) -> Any:
        with keras_private.seeds_drawn_from(step):
            return strategy.run(on_replica, args=(batch,))

    return lambda batch, step: run(batch, tf.constant(step, tf.int64))


def metric_states(model: keras.Model) -> Variables:
    """The variables of the model's metrics, of which every replica has its own values."""
    return [variable.value for metric in model.metrics for variable in metric.variables]


@until_recompiled
def read_metrics(model: keras.Model) -> Callable[[], dict[str, Any]]:
    """Makes the function that reads the model's metrics over all replicas; a collective."""

    @tf.function
    def read() -> Any:
        return model.get_metrics_result()

    return lambda: _numbers(read())


def _numbers(results: dict[str, Any]) -> dict[str, Any]:
    """Metrics' results by name; a metric may give several, in a dict, which Keras flattens too."""
    numbers: dict[str, Any] = {}
    for name, value in results.items():
        numbers |= _numbers(value) if isinstance(value, dict) else {name: value.numpy().tolist()}
    return numbers
