"""The steps: what every replica does with its slice of a batch.

An update is Keras's own ``train_step``, or the one that the model overrides it with. Only how
replicas come together is ours: gradients are averaged over the *examples* of the global batch,
however unevenly the replicas share them, before the optimizer clips, checks or applies anything.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from typing import Any, TypeVar

import keras
import tensorflow as tf

from tfdp import keras_private
from tfdp.feed import Batches

Variables = list[tf.Variable]
Made = TypeVar("Made")


def train_steps(model: keras.Model, batches: Batches) -> Callable[[Any, int, int], None]:
    """Makes the function that runs many updates in one call.

    Args:
        model: a built and compiled model.
        batches: what it will be given; says whether replicas may differ in their shares.

    Returns:
        A function of an iterator over ``batches``, the number of updates done so far, and how
        many to do.
    """
    strategy = model.distribute_strategy
    mine = threading.local()  # MirroredStrategy traces each replica in a thread of its own

    @tf.autograph.experimental.do_not_convert
    def on_replica(batch: Any) -> None:
        mine.examples = examples = count_examples(batch)
        if not batches.leaves_replicas_idle:
            model.train_step(batch)
            return
        states = metric_states(model)
        before = [tf.identity(state) for state in states]
        model.train_step(_never_empty(batch, examples))
        for state, old in zip(states, before, strict=True):
            state.assign(tf.where(examples > 0, state, old))

    has_sparse = False  # known once the first call is traced

    def reduce(gradients: list[Any]) -> list[Any]:
        nonlocal has_sparse
        has_sparse |= any(isinstance(gradient, tf.IndexedSlices) for gradient in gradients)
        return _mean(gradients, mine.examples, batches.is_even)

    @tf.function
    def run(iterator: Any, first_step: tf.Tensor, steps: tf.Tensor) -> None:
        for i in tf.range(steps):
            with (
                keras_private.seeds_drawn_from(first_step + i),
                keras_private.reduced_first(reduce),
            ):
                strategy.run(on_replica, args=(next(iterator),))

    def call(iterator: Any, first_step: int, steps: int) -> None:
        # Within a call, TensorFlow holds a collective to the shape that it had first, and sparse
        # gradients (of embeddings) have a row for every word of a batch, be it full or the last.
        at_once = 1 if has_sparse and strategy.num_replicas_in_sync > 1 else steps
        for step in range(first_step, first_step + steps, at_once):
            run(iterator, tf.constant(step, tf.int64), tf.constant(at_once, tf.int64))

    return call


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
def test_step(model: keras.Model) -> Callable[[Any], None]:
    """Makes the function that evaluates one batch, a slice of it on each replica.

    Replicas exchange nothing in it, so that workers may run it independently, and a replica whose
    slice is empty does nothing.
    """
    strategy = model.distribute_strategy

    @tf.autograph.experimental.do_not_convert
    def on_replica(batch: Any) -> None:
        def test() -> tf.Tensor:
            model.test_step(batch)
            return tf.constant(0)

        tf.cond(count_examples(batch) > 0, test, lambda: tf.constant(0))

    @tf.function(reduce_retracing=True)
    def run(batch: Any) -> None:
        strategy.run(on_replica, args=(batch,))

    return run  # type: ignore[no-any-return]


@until_recompiled
def test_steps(model: keras.Model) -> Callable[[Any, int], None]:
    """Makes the function that evaluates many batches in one call: an iterator, how many."""
    one = test_step(model)

    @tf.function
    def run(iterator: Any, steps: tf.Tensor) -> None:
        for _ in tf.range(steps):
            one(next(iterator))

    return lambda iterator, steps: run(iterator, tf.constant(steps, tf.int64))


@until_recompiled
def predict_step(model: keras.Model) -> Callable[[Any], Any]:
    """Makes the function that predicts one batch; its rows stay with their replicas."""
    strategy = model.distribute_strategy

    @tf.autograph.experimental.do_not_convert
    def on_replica(batch: Any) -> Any:
        return model.predict_step(batch)

    @tf.function(reduce_retracing=True)
    def run(batch: Any) -> Any:
        return strategy.run(on_replica, args=(batch,))

    return run  # type: ignore[no-any-return]


def _mean(gradients: list[Any], examples: tf.Tensor, is_even: bool) -> list[Any]:
    """Averages the replicas' gradients over the examples of the global batch.

    Keras divides a replica's loss by the number of replicas, so that a plain sum of the gradients
    is their mean. With n_r examples on replica r of R, the mean over examples is the sum of
    ``g_r * n_r`` times ``R / sum(n_r)``.

    Args:
        gradients: of this replica; tensors, IndexedSlices or None.
        examples: int32 scalar, n_r; what a replica without examples computed does not count.
        is_even: n_r is the same everywhere, so the plain sum will do.
    """
    context = tf.distribute.get_replica_context()
    present = [gradient for gradient in gradients if gradient is not None]
    if context.num_replicas_in_sync == 1 or not present:
        return gradients
    if is_even:
        reduced = context.all_reduce(tf.distribute.ReduceOp.SUM, present)
    else:
        weighted = [_scaled(gradient, examples) for gradient in present]
        *reduced, total = context.all_reduce(
            tf.distribute.ReduceOp.SUM, [*weighted, tf.cast(examples, present[0].dtype)]
        )
        factor = context.num_replicas_in_sync / total
        reduced = [_scaled(gradient, factor) for gradient in reduced]
    rest = iter(reduced)
    return [None if gradient is None else next(rest) for gradient in gradients]


def _scaled(gradient: Any, factor: tf.Tensor) -> Any:
    if isinstance(gradient, tf.IndexedSlices):
        values = _scaled(gradient.values, factor)
        return tf.IndexedSlices(values, gradient.indices, gradient.dense_shape)
    # An empty batch has NaN for a mean, which times 0 has to be 0.
    return tf.math.multiply_no_nan(gradient, tf.cast(factor, gradient.dtype))


def _never_empty(batch: Any, examples: tf.Tensor) -> Any:
    """The batch, or one example of zeros where there is none: an empty mean is not a number."""
    missing = tf.cast(tf.equal(examples, 0), tf.int32)

    def padded(leaf: tf.Tensor) -> tf.Tensor:
        paddings = [[0, missing]] + [[0, 0]] * (leaf.shape.rank - 1)
        if leaf.dtype == tf.string:
            return tf.pad(leaf, paddings, constant_values="")
        return tf.pad(leaf, paddings)

    return tf.nest.map_structure(padded, batch)


def count_examples(batch: Any) -> tf.Tensor:
    """How many examples a batch has, as an int32 scalar."""
    return tf.shape(tf.nest.flatten(batch)[0])[0]


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
