"""The input pipeline: from data to an endless stream of batches, split over the replicas."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from tfdp.choices import AutoShard
from tfdp.data import sharding
from tfdp.data.order import Order, to_stateless_seed
from tfdp.data.sources import Batch, Source
from tfdp.errors import BadInput
from tfdp.log import say
from tfdp.workers.collectives import Workers

Preprocess = Callable[[Any, bool, tf.Tensor], Any]  # (features, training, seed) -> model inputs


@dataclasses.dataclass(frozen=True)
class Batches:
    """Endless batches, one for each replica and step.

    Args:
        dataset: an iterable dataset; gives every local replica its share of a global batch.
        element_spec: specs of ``(x[, y[, sample_weight]])``, batch dimension first and unknown.
        steps_per_epoch: updates in an epoch.
        order: gives the size of each global batch; None if the size is not known in advance.
        examples_before: returns the number of examples in the updates before a step; None if that
            is unknown.
        steps_to_skip: number of batches to skip: those trained before the resume point.
    """

    dataset: Any
    element_spec: Any
    steps_per_epoch: int
    order: Order | None = None
    examples_before: Callable[[int], int] | None = None
    steps_to_skip: int = 0

    def iterator(self) -> Any:
        """Returns an iterator over the batches after the skipped ones."""
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
    """Returns the batches of a source: each replica reads its slice of every global batch.

    Args:
        source: the source of examples.
        order: determines which examples make global batch k.
        workers: the workers.
        first_step: number of updates before the first batch.
        training: the argument ``training`` of ``preprocess``.
        preprocess: applied to the features of each example, in parallel.
        transform: applied to each batch ``(x[, y[, sample_weight]])``, after ``preprocess``.

    Raises:
        BadInput: on all workers, if their sources differ in length.
    """
    check_same_length(source, workers)
    read = _make_source_reader(source, preprocess, training, seed=order.seed)

    def build(context: tf.distribute.InputContext) -> tf.data.Dataset:
        first_replica = context.input_pipeline_id * workers.local_replicas

        def read_batch(turn: tf.Tensor) -> Any:  # local replicas take turns at each step
            step, replica = turn // workers.local_replicas, turn % workers.local_replicas
            epoch, indices = order.slice(step, first_replica + replica, workers.replicas)
            return read(epoch, indices)

        turns = tf.data.Dataset.counter(start=first_step * workers.local_replicas)
        dataset = turns.map(read_batch, num_parallel_calls=tf.data.AUTOTUNE)
        if transform is not None:
            dataset = dataset.map(transform, num_parallel_calls=tf.data.AUTOTUNE)
        return dataset.prefetch(tf.data.AUTOTUNE)

    context = tf.distribute.InputContext(workers.count, workers.index, workers.replicas)
    local = build(context)
    # TensorFlow's distributed dataset brings batches to several devices. With one CPU it would add
    # about a tenth to the step time of a tiny model.
    is_one_cpu = workers.local_replicas == 1 and not tf.config.list_physical_devices("GPU")
    return Batches(
        dataset=(
            local if is_one_cpu else workers.strategy.distribute_datasets_from_function(build)
        ),
        element_spec=local.element_spec,
        steps_per_epoch=order.steps_per_epoch,
        order=order,
        examples_before=order.examples_before,
    )


def check_same_length(source: Source, workers: Workers) -> None:
    """Raises BadInput, on all workers, if their sources differ in length; a collective."""
    lengths = workers.gather(np.array([len(source)], np.int64))[:, 0].tolist()
    if len(set(lengths)) > 1:
        workers.settle()
        raise BadInput(
            f"the workers' sources have {lengths} examples, in the workers' order: all of them "
            "have to have the same arrays or files"
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
    """Returns training batches of a plain dataset of global batches, sharded by TensorFlow.

    Args:
        dataset: global batches ``(x[, y[, sample_weight]])``.
        workers: the workers.
        steps_per_epoch: updates in an epoch; None uses the dataset's length, which is counted by
            reading the dataset once if TensorFlow can't tell it.
        first_step: number of updates before the first batch; their batches are read and dropped.
        auto_shard: how TensorFlow shards the dataset; None uses the dataset's options.
        preprocess: applied to the features of each example.
        seed: the run's seed, from which the seeds of ``preprocess`` are derived.
        transform: applied to each batch, after ``preprocess``.

    Raises:
        BadInput: if the dataset never ends and ``steps_per_epoch`` is None, or it is empty, or
            its length differs between workers, or its files can't be sharded as requested.
    """
    if preprocess is not None:
        # Seeds need numbered batches, and TensorFlow can't shard by file behind a numbering.
        if auto_shard == "file":
            raise BadInput(
                "--auto_shard=file does not go with preprocess: map it in train_data yourself, "
                "or use --auto_shard=data, or a tfdp.Source"
            )
        auto_shard = "data" if auto_shard in (None, "auto") else auto_shard
    auto_shard = sharding.choose_auto_shard(dataset, auto_shard, workers, training=True)
    if steps_per_epoch is None:
        steps_per_epoch = _count_batches(dataset, workers)
    dataset = dataset.repeat()  # or workers would have to agree at every step whether it ends
    if preprocess is not None:
        preprocess_batch = _make_dataset_preprocess(preprocess, training=True, seed=seed)
        dataset = dataset.scan(
            np.int64(0), lambda step, batch: (step + 1, (step, *as_tuple(batch)))
        )
        dataset = dataset.map(preprocess_batch, num_parallel_calls=tf.data.AUTOTUNE)
    if transform is not None:
        dataset = dataset.map(transform, num_parallel_calls=tf.data.AUTOTUNE)
    dataset = with_auto_shard_policy(dataset, auto_shard).prefetch(tf.data.AUTOTUNE)
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
        BadInput: if the dataset never ends and ``steps`` is None, or its files can't be sharded as
            requested.
    """
    if steps is None and dataset.cardinality() == tf.data.INFINITE_CARDINALITY:
        raise BadInput(
            "the dataset to evaluate or predict never ends: give steps (validation_steps), or "
            "leave out repeat()"
        )
    auto_shard = sharding.choose_auto_shard(dataset, auto_shard, workers, training=False)
    return with_auto_shard_policy(preprocessed(dataset, preprocess), auto_shard)


def with_auto_shard_policy(
    dataset: tf.data.Dataset, auto_shard: AutoShard | None
) -> tf.data.Dataset:
    """Returns the dataset with TensorFlow's option that determines how workers shard it."""
    if auto_shard is None:
        return dataset
    options = tf.data.Options()
    options.experimental_distribute.auto_shard_policy = getattr(
        tf.data.experimental.AutoShardPolicy, auto_shard.upper()
    )
    return dataset.with_options(options)


def _count_batches(dataset: tf.data.Dataset, workers: Workers) -> int:
    length = int(dataset.cardinality())
    if length == tf.data.INFINITE_CARDINALITY:
        raise BadInput(
            "the dataset never ends, so an epoch has no length: give steps_per_epoch, or --steps"
        )
    if length == tf.data.UNKNOWN_CARDINALITY:
        if workers.is_chief:
            say(
                "counting the dataset, whose length TensorFlow can't tell "
                "(steps_per_epoch or tf.data.experimental.assert_cardinality make it unnecessary)"
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


def make_batch_preprocess(preprocess: Preprocess, training: bool) -> Callable[..., Any]:
    """Returns a function that applies ``preprocess`` to each example of a batch.

    Returns:
        A function of features (examples first) and seeds (int32[n, 2]) that returns model inputs.
    """

    def preprocess_one(features_and_seed: tuple[Any, tf.Tensor]) -> Any:
        return preprocess(features_and_seed[0], training, features_and_seed[1])

    def preprocess_batch(features: Any, seeds: tf.Tensor) -> Any:
        example = tf.nest.map_structure(
            lambda leaf: tf.TensorSpec(leaf.shape[1:], leaf.dtype), (features, seeds)
        )
        outputs = tf.function(preprocess_one).get_concrete_function(example).structured_outputs
        signature = tf.nest.map_structure(
            lambda leaf: tf.TensorSpec(leaf.shape, leaf.dtype), outputs
        )
        return tf.map_fn(preprocess_one, (features, seeds), fn_output_signature=signature)

    return preprocess_batch


def as_tuple(element: Any) -> Batch:
    """Returns a dataset's element as a tuple: ``(element,)`` if it consists of features alone."""
    return element if isinstance(element, tuple) else (element,)


def element_spec(data: Source | tf.data.Dataset) -> Batch:
    """Returns the specs of ``(features[, labels[, sample_weight]])`` of one example."""
    return data.element_spec() if isinstance(data, Source) else as_tuple(data.element_spec)


def are_compatible(spec: Any, other: Any) -> bool:
    """Returns whether two specs have the same structure and compatible leaves."""
    try:
        tf.nest.assert_same_structure(spec, other)
    except (TypeError, ValueError):
        return False
    pairs = zip(tf.nest.flatten(spec), tf.nest.flatten(other), strict=True)
    return all(a.dtype == b.dtype and a.shape.is_compatible_with(b.shape) for a, b in pairs)


def preprocessed(dataset: tf.data.Dataset, preprocess: Preprocess | None) -> tf.data.Dataset:
    """Returns a dataset of batches for evaluation, with each example preprocessed."""
    if preprocess is None:
        return dataset
    preprocess_batch = _make_dataset_preprocess(preprocess, training=False, seed=0)
    return dataset.map(
        lambda *batch: preprocess_batch(tf.constant(0, tf.int64), *batch),
        num_parallel_calls=tf.data.AUTOTUNE,
    )


def _make_dataset_preprocess(
    preprocess: Preprocess, training: bool, seed: int
) -> Callable[..., Any]:
    """Returns a function that preprocesses a dataset's batch, given its step.

    A dataset's examples have no indices, so seeds are derived from the place in the batch.
    """
    preprocess_batch = make_batch_preprocess(preprocess, training)

    def apply(step: tf.Tensor, features: Any, *rest: Any) -> Any:
        places = tf.range(tf.shape(tf.nest.flatten(features)[0])[0])
        return (preprocess_batch(features, _example_seeds(seed, step, places)), *rest)

    return apply


def _make_source_reader(
    source: Source, preprocess: Preprocess | None, training: bool, seed: int
) -> Callable[[tf.Tensor, tf.Tensor], Any]:
    """Returns a function that reads and preprocesses the examples at ``indices`` of ``epoch``."""
    if preprocess is None:
        return lambda epoch, indices: source.read(indices)
    preprocess_batch = make_batch_preprocess(preprocess, training)

    def read(epoch: tf.Tensor, indices: tf.Tensor) -> Any:
        features, *rest = source.read(indices)
        return (preprocess_batch(features, _example_seeds(seed, epoch, indices)), *rest)

    return read


def _example_seeds(seed: int, epoch: tf.Tensor, indices: tf.Tensor) -> tf.Tensor:
    """Returns a seed for each example (int32[n, 2]), from the run's seed, epoch and index."""
    fold_in = tf.random.experimental.stateless_fold_in  # returns [hash of the seed, the data]
    epoch_seed = fold_in(fold_in(to_stateless_seed(seed), tf.cast(epoch, tf.int32)), 0)[0]
    columns = [tf.fill(tf.shape(indices), epoch_seed), tf.cast(indices, tf.int32)]
    return tf.stack(columns, axis=1)
