"""From data to an endless stream of batches, split over the replicas."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from tfdp.choices import AutoShard
from tfdp.data import sharding
from tfdp.data.order import Order, words_of
from tfdp.data.sources import Batch, Source
from tfdp.errors import BadInput
from tfdp.workers.collectives import Workers

Preprocess = Callable[[Any, bool, tf.Tensor], Any]  # (features, training, seed) -> model inputs


@dataclasses.dataclass(frozen=True)
class Batches:
    """Batches without end, one for each replica and step.

    Args:
        dataset: what ``iter`` takes; gives every local replica its part of a global batch.
        element_spec: specs of ``(x[, y[, sample_weight]])``, batch dimension first and unknown.
        steps_per_epoch: updates in an epoch.
        order: how many examples each global batch has; None where only TensorFlow knows.
        examples_before: examples used by the updates before a step; None if that is unknown.
        steps_to_skip: batches to draw and drop before the first: done in an earlier start.
    """

    dataset: Any
    element_spec: Any
    steps_per_epoch: int
    order: Order | None = None
    examples_before: Callable[[int], int] | None = None
    steps_to_skip: int = 0

    def iterator(self) -> Any:
        """An iterator that stands at the first batch of this start."""
        iterator = iter(self.dataset)

        @tf.function
        def skip(steps: tf.Tensor) -> None:
            for _ in tf.range(steps):
                next(iterator)

        if self.steps_to_skip:
            skip(tf.constant(self.steps_to_skip))
        return iterator


def from_source(
    source: Source,
    order: Order,
    workers: Workers,
    *,
    first_step: int = 0,
    training: bool = True,
    preprocess: Preprocess | None = None,
    transform: Callable[..., Any] | None = None,
) -> Batches:
    """Batches of a source: each replica reads its slice of every global batch.

    Args:
        source: where examples are read.
        order: which of them make global batch k.
        workers: the workers.
        first_step: updates done before the first batch.
        training: what ``preprocess`` is told.
        preprocess: applied to the features of each example, in parallel.
        transform: applied to each batch ``(x[, y[, sample_weight]])`` at last.

    Raises:
        BadInput: on all workers, if the source has another length on another one.
    """
    check_same_length(source, workers)
    read = _reader(source, preprocess, training, seed=order.seed)

    def pipeline(context: tf.distribute.InputContext) -> tf.data.Dataset:
        first_replica = context.input_pipeline_id * workers.local_replicas

        def batch(turn: tf.Tensor) -> Any:  # every local replica takes its turn at each step
            step, replica = turn // workers.local_replicas, turn % workers.local_replicas
            epoch, indices = order.slice(step, first_replica + replica, workers.replicas)
            return read(epoch, indices)

        turns = tf.data.Dataset.counter(start=first_step * workers.local_replicas)
        dataset = turns.map(batch, num_parallel_calls=tf.data.AUTOTUNE)
        if transform is not None:
            dataset = dataset.map(transform, num_parallel_calls=tf.data.AUTOTUNE)
        return dataset.prefetch(tf.data.AUTOTUNE)

    here = tf.distribute.InputContext(workers.count, workers.index, workers.replicas)
    local = pipeline(here)
    # TensorFlow's distributed dataset carries batches to several devices; to one CPU it adds
    # about a tenth to the step of a tiny model.
    is_one_cpu = workers.local_replicas == 1 and not tf.config.list_physical_devices("GPU")
    return Batches(
        dataset=(
            local if is_one_cpu else workers.strategy.distribute_datasets_from_function(pipeline)
        ),
        element_spec=local.element_spec,
        steps_per_epoch=order.steps_per_epoch,
        order=order,
        examples_before=order.examples_before,
    )


def check_same_length(source: Source, workers: Workers) -> None:
    """Raises BadInput, on all workers, if they have sources of different lengths."""
    lengths = workers.gather(np.array([len(source)], np.int64))[:, 0].tolist()
    if len(set(lengths)) > 1:
        workers.settle()
        raise BadInput(
            f"the workers' sources have {lengths} examples, in the workers' order: all of them "
            "have to see the same arrays or files"
        )


def from_dataset(
    dataset: tf.data.Dataset,
    workers: Workers,
    *,
    steps_per_epoch: int | None = None,
    first_step: int = 0,
    auto_shard: AutoShard | None = None,
    preprocess: Preprocess | None = None,
    seed: int = 0,
    transform: Callable[..., Any] | None = None,
) -> Batches:
    """Training batches of a plain dataset of global batches, sharded by TensorFlow.

    Args:
        dataset: global batches ``(x[, y[, sample_weight]])``.
        workers: the workers.
        steps_per_epoch: updates in an epoch; None takes the dataset's length, and counts it by
            reading it once where TensorFlow doesn't know it.
        first_step: updates done before the first batch; what they read is read again and dropped.
        auto_shard: how the workers divide the data; None leaves it to the dataset's options.
        preprocess: applied to the features of each example.
        seed: of the run; makes the seeds that ``preprocess`` gets.
        transform: applied to each batch at last.

    Raises:
        BadInput: if the dataset has no end and ``steps_per_epoch`` is None, or is empty, or has
            another length on another worker, or its files can't be divided as asked for.
    """
    if preprocess is not None:
        # Batches are numbered for the seeds, and TensorFlow can't shard by files through that.
        if auto_shard == "file":
            raise BadInput(
                "--auto_shard=file does not go with preprocess: map it in train_data yourself, "
                "or use --auto_shard=data, or a tfdp.Source"
            )
        auto_shard = "data" if auto_shard in (None, "auto") else auto_shard
    auto_shard = sharding.settled(dataset, auto_shard, workers, training=True)
    if steps_per_epoch is None:
        steps_per_epoch = _length(dataset, workers)
    dataset = dataset.repeat()  # without an end, workers need not agree on one at every step
    if preprocess is not None:
        read = _batch_preprocessor(preprocess, training=True, seed=seed)
        dataset = dataset.scan(
            np.int64(0), lambda step, batch: (step + 1, (step, *as_tuple(batch)))
        )
        dataset = dataset.map(read, num_parallel_calls=tf.data.AUTOTUNE)
    if transform is not None:
        dataset = dataset.map(transform, num_parallel_calls=tf.data.AUTOTUNE)
    dataset = sharded(dataset, auto_shard).prefetch(tf.data.AUTOTUNE)
    return Batches(
        dataset=workers.strategy.experimental_distribute_dataset(dataset),
        element_spec=dataset.element_spec,
        steps_per_epoch=steps_per_epoch,
        steps_to_skip=first_step,
    )


def in_order(
    source: Source, batch_size: int | None, workers: Workers, preprocess: Preprocess | None
) -> tuple[Batches, Order]:
    """Returns the global batches of a source in the data's order, for evaluation and prediction."""
    order = Order(len(source), batch_size or 32, shuffle=False)
    return from_source(source, order, workers, training=False, preprocess=preprocess), order


def for_evaluation(
    dataset: tf.data.Dataset,
    workers: Workers,
    steps: int | None,
    preprocess: Preprocess | None,
    auto_shard: AutoShard | None,
) -> tf.data.Dataset:
    """Returns a dataset of global batches for evaluation or prediction; a collective.

    Args:
        dataset: global batches ``(x[, y[, sample_weight]])``.
        workers: the workers.
        steps: batches to read; None reads to the end.
        preprocess: applied to the features of each example.
        auto_shard: how TensorFlow shards the dataset; None uses the dataset's options.

    Raises:
        BadInput: if the dataset has no end and ``steps`` is None, or its files can't be sharded as
            asked for.
    """
    if steps is None and dataset.cardinality() == tf.data.INFINITE_CARDINALITY:
        raise BadInput(
            "the dataset to evaluate or predict never ends: give steps (validation_steps), or "
            "leave out repeat()"
        )
    auto_shard = sharding.settled(dataset, auto_shard, workers, training=False)
    return sharded(preprocessed(dataset, preprocess), auto_shard)


def sharded(dataset: tf.data.Dataset, auto_shard: AutoShard | None) -> tf.data.Dataset:
    """The dataset with TensorFlow's option for how workers divide it."""
    if auto_shard is None:
        return dataset
    options = tf.data.Options()
    options.experimental_distribute.auto_shard_policy = getattr(
        tf.data.experimental.AutoShardPolicy, auto_shard.upper()
    )
    return dataset.with_options(options)


def _length(dataset: tf.data.Dataset, workers: Workers) -> int:
    length = int(dataset.cardinality())
    if length == tf.data.INFINITE_CARDINALITY:
        raise BadInput(
            "the dataset never ends, so an epoch has no length: give steps_per_epoch, or --steps"
        )
    if length == tf.data.UNKNOWN_CARDINALITY:
        if workers.is_chief:
            print(
                "tfdp: counting the dataset, whose length TensorFlow doesn't know "
                "(steps_per_epoch or tf.data.experimental.assert_cardinality spare this)",
                file=sys.stderr,
            )
        length = int(dataset.reduce(np.int64(0), lambda count, *_: count + 1))
    lengths = workers.gather(np.array([length]))[:, 0].tolist()
    if len(set(lengths)) > 1:
        raise BadInput(
            f"the workers' datasets have {lengths} batches, in the workers' order: they have to "
            "be equally long (build the whole dataset on every worker; tfdp shards it)"
        )
    if length == 0:
        raise BadInput("the dataset is empty: it has to have at least one example")
    return length


def per_batch(preprocess: Preprocess, training: bool) -> Callable[..., Any]:
    """``preprocess``, which takes one example, for a batch of them.

    Returns:
        A function of features (examples first) and seeds (int32[n, 2]) that gives model inputs.
    """

    def one(features_and_seed: tuple[Any, tf.Tensor]) -> Any:
        return preprocess(features_and_seed[0], training, features_and_seed[1])

    def batch(features: Any, seeds: tf.Tensor) -> Any:
        example = tf.nest.map_structure(
            lambda leaf: tf.TensorSpec(leaf.shape[1:], leaf.dtype), (features, seeds)
        )
        outputs = tf.function(one).get_concrete_function(example).structured_outputs
        signature = tf.nest.map_structure(
            lambda leaf: tf.TensorSpec(leaf.shape, leaf.dtype), outputs
        )
        return tf.map_fn(one, (features, seeds), fn_output_signature=signature)

    return batch


def as_tuple(element: Any) -> Batch:
    """An element of a dataset, as the tuple that it is unless it has features alone."""
    return element if isinstance(element, tuple) else (element,)


def element_spec(data: Source | tf.data.Dataset) -> Batch:
    """Specs of ``(features[, labels[, sample_weight]])`` of single examples."""
    return data.element_spec() if isinstance(data, Source) else as_tuple(data.element_spec)


def are_compatible(spec: Any, other: Any) -> bool:
    """Whether two specs have one structure, and leaves that fit each other."""
    try:
        tf.nest.assert_same_structure(spec, other)
    except (TypeError, ValueError):
        return False
    pairs = zip(tf.nest.flatten(spec), tf.nest.flatten(other), strict=True)
    return all(a.dtype == b.dtype and a.shape.is_compatible_with(b.shape) for a, b in pairs)


def preprocessed(dataset: tf.data.Dataset, preprocess: Preprocess | None) -> tf.data.Dataset:
    """A dataset of batches for evaluation, with ``preprocess`` applied to each example."""
    if preprocess is None:
        return dataset
    read = _batch_preprocessor(preprocess, training=False, seed=0)
    return dataset.map(
        lambda *batch: read(tf.constant(0, tf.int64), *batch), num_parallel_calls=tf.data.AUTOTUNE
    )


def _batch_preprocessor(preprocess: Preprocess, training: bool, seed: int) -> Callable[..., Any]:
    """For batches that come from elsewhere, where an example is known by its place in its batch."""
    one_by_one = per_batch(preprocess, training)

    def read(step: tf.Tensor, features: Any, *rest: Any) -> Any:
        places = tf.range(tf.shape(tf.nest.flatten(features)[0])[0])
        return (one_by_one(features, _seeds(seed, step, places)), *rest)

    return read


def _reader(
    source: Source, preprocess: Preprocess | None, training: bool, seed: int
) -> Callable[[tf.Tensor, tf.Tensor], Any]:
    """Reads and preprocesses the examples at ``indices`` of ``epoch``."""
    if preprocess is None:
        return lambda epoch, indices: source.read(indices)
    one_by_one = per_batch(preprocess, training)

    def read(epoch: tf.Tensor, indices: tf.Tensor) -> Any:
        features, *rest = source.read(indices)
        return (one_by_one(features, _seeds(seed, epoch, indices)), *rest)

    return read


def _seeds(seed: int, epoch: tf.Tensor, indices: tf.Tensor) -> tf.Tensor:
    """A seed (int32[2]) for each example, made of the run's seed, the epoch and the index."""
    fold_in = tf.random.experimental.stateless_fold_in  # gives [a hash of the seed, the data]
    of_epoch = fold_in(fold_in(words_of(seed), tf.cast(epoch, tf.int32)), 0)[0]
    columns = [tf.fill(tf.shape(indices), of_epoch), tf.cast(indices, tf.int32)]
    return tf.stack(columns, axis=1)
