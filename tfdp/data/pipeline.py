"""The input pipeline: from data to an endless stream of batches, split over the replicas."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from tfdp.choices import AutoShard
from tfdp.data import sharding
from tfdp.data.batch_digest import batch_digest, same_examples, with_digests
from tfdp.data.order import Order, bounds
from tfdp.data.preprocessing import (
    Preprocess,
    as_element,
    as_tuple,
    make_source_reader,
    preprocessed,
)
from tfdp.data.read_ahead import reads_ahead, without_read_ahead
from tfdp.data.replica_batch import ReplicaBatch, of_replica, take_rows
from tfdp.data.sources import Batch, Source
from tfdp.errors import BadInput
from tfdp.log import say
from tfdp.whereabouts import READING, marked
from tfdp.workers.collectives import Workers

Build = Callable[[tf.distribute.InputContext], tf.data.Dataset]


@dataclasses.dataclass(frozen=True)
class Batches:
    """Batches of data, one for each replica and step.

    Args:
        dataset: an iterable dataset; gives every local replica its ``ReplicaBatch`` of each global
            batch. If TensorFlow shards by file, or not at all, it gives each replica bare data,
            which ``tfdp.step.share.as_replica_batch`` counts.
        element_spec: specs of the data, ``x`` or ``(x[, y[, sample_weight]])``; the batch dimension
            comes first and may be unknown.
        sample: returns up to so many real rows of the data as an eager batch, equal on all workers.
        steps_per_epoch: batches in an epoch; 0 in an evaluation of unknown length.
        smallest_batch: a global batch has at least so many examples; 0 if that is unknown.
        examples_before: returns the number of examples in the updates before a step; None if that
            is unknown.
        steps_to_skip: number of batches to skip: those trained before the resume point.
    """

    dataset: Any
    element_spec: Any
    sample: Callable[[int], Any]
    steps_per_epoch: int = 0
    smallest_batch: int = 0
    examples_before: Callable[[int], int] | None = None
    steps_to_skip: int = 0

    @marked(READING)
    def iterator(self) -> Any:
        """Returns an iterator over the batches after the skipped ones; call it once."""
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
        BadInput: on all workers, if their sources differ.
    """
    check_sources_are_alike(source, workers)
    read = make_source_reader(source, preprocess, training, seed=order.seed)

    def as_data(batch: Batch) -> Any:
        batch = batch if transform is None else transform(*batch)
        return as_element(batch)

    @tf.autograph.experimental.do_not_convert
    def with_data(batch: ReplicaBatch) -> ReplicaBatch:
        return batch._replace(data=as_data(batch.data))

    def build(context: tf.distribute.InputContext) -> tf.data.Dataset:
        first_replica = context.input_pipeline_id * workers.local_replicas

        def read_batch(turn: tf.Tensor) -> ReplicaBatch:  # local replicas take turns at each step
            step, replica = turn // workers.local_replicas, turn % workers.local_replicas
            size, replica = order.batch_size(step), first_replica + replica
            epoch, indices = order.slice(step, replica, workers.replicas, at_least=1)
            start, stop = bounds(size, replica, workers.replicas)
            examples, total = (tf.cast(each, tf.int32) for each in (stop - start, size))
            batch = read(epoch, indices)
            return ReplicaBatch(batch, examples, total, tf.constant(0, tf.int64))

        turns = tf.data.Dataset.counter(start=first_step * workers.local_replicas)
        dataset = turns.map(read_batch, num_parallel_calls=tf.data.AUTOTUNE)
        if transform is not None or len(dataset.element_spec.data) == 1:
            dataset = dataset.map(with_data, num_parallel_calls=tf.data.AUTOTUNE)
        return dataset.prefetch(tf.data.AUTOTUNE)

    def sample(rows: int) -> Any:
        count = min(rows, len(source), order.global_batch_size)
        # From all of the data, because they may be sorted by class.
        indices = tf.range(count, dtype=tf.int64) * (len(source) // count)
        dataset = tf.data.Dataset.from_tensors(indices).map(lambda each: read(np.int64(0), each))
        return as_data(as_tuple(dataset.get_single_element()))

    dataset, spec = _distributed(build, workers)
    return Batches(
        dataset=dataset,
        element_spec=spec,
        sample=sample,
        steps_per_epoch=order.steps_per_epoch,
        smallest_batch=order.smallest_batch_size,
        examples_before=order.examples_before,
    )


def check_sources_are_alike(source: Source, workers: Workers) -> None:
    """Raises BadInput, on all workers, if their sources differ; a collective."""
    if workers.count == 1:
        return
    digest = int(source.sample_sha256()[:12] or "0", 16)
    lengths, digests = workers.gather(np.array([len(source), digest], np.int64)).T.tolist()
    if len(set(lengths)) > 1:
        workers.settle()
        raise BadInput(
            f"the workers' sources have {lengths} examples, in the workers' order: all of them "
            "have to have the same arrays or files"
        )
    if len(set(digests)) > 1:
        workers.settle()
        raise BadInput(
            "the workers' arrays differ: all of them have to have the same examples in the same "
            "order. Usually they were drawn or shuffled without a seed (np.random.default_rng() is "
            "seeded in each process: give it a seed), before tfdp.connect() gave all workers the "
            "same random state, or files were listed in another order (sort them)"
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
    """Returns training batches of a plain dataset of global batches.

    Every worker reads the global batches and computes its rows of each, unless files are sharded.

    Args:
        dataset: global batches, ``x`` or ``(x[, y[, sample_weight]])``.
        workers: the workers.
        steps_per_epoch: updates in an epoch; None uses the dataset's length, which is counted by
            reading the dataset once if TensorFlow can't tell it.
        first_step: number of updates before the first batch; their batches are read and dropped.
        auto_shard: how workers shard the dataset; None uses the dataset's options.
        preprocess: applied to the features of each example.
        seed: the run's seed, from which the seeds of ``preprocess`` are derived.
        transform: applied to each batch, after ``preprocess``.

    Raises:
        BadInput: if the dataset never ends and ``steps_per_epoch`` is None, or it is empty, or
            it differs between workers, or its files can't be sharded as requested.
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
    read_ahead = reads_ahead(dataset)
    dataset = dataset.repeat()  # or workers would have to agree at every step whether it ends
    dataset = preprocessed(dataset, preprocess, seed)
    if transform is not None:
        dataset = dataset.map(transform, num_parallel_calls=tf.data.AUTOTUNE)
    if auto_shard != "data":
        return dataclasses.replace(
            _sharded_by_tensorflow(dataset, auto_shard, workers),
            steps_per_epoch=steps_per_epoch,
            steps_to_skip=first_step,
        )
    first, dataset = _opened(dataset.skip(first_step))
    if first is None:
        raise BadInput("the dataset is empty: it has to have at least one batch")
    if workers.count > 1:
        check_batches_are_alike(1, int(batch_digest(first)), workers)
    return dataclasses.replace(
        _shared(dataset, workers, read_ahead=read_ahead),
        sample=lambda rows: take_rows(first, 0, rows),
        steps_per_epoch=steps_per_epoch,
    )


@marked(READING)
def _opened(dataset: tf.data.Dataset) -> tuple[Any, tf.data.Dataset]:
    """Returns the first element of an endless dataset, and a dataset that yields all of them once.

    A second iterator would change what follows: ``shuffle`` gives each iterator another order.

    Returns:
        The first element (None if there is none), and the dataset.
    """
    iterator = iter(dataset)
    first = next(iterator, None)
    if first is None:
        return None, dataset
    rest = tf.data.Dataset.counter().map(lambda _: next(iterator))
    return first, tf.data.Dataset.from_tensors(first).concatenate(rest)


def _shared(dataset: tf.data.Dataset, workers: Workers, *, read_ahead: bool) -> Batches:
    """Returns the batches of a dataset that every worker reads whole, to compute its rows of it."""
    spec, local_replicas = dataset.element_spec, workers.local_replicas
    if workers.count > 1:
        dataset = with_digests(dataset)
    else:
        no_digest = tf.data.Dataset.from_tensors(np.int64(0)).repeat()
        dataset = tf.data.Dataset.zip(dataset, no_digest)

    def build(context: tf.distribute.InputContext) -> tf.data.Dataset:
        first_replica = context.input_pipeline_id * local_replicas

        def of_local(batch: Any, digest: tf.Tensor, replica: Any) -> ReplicaBatch:
            return of_replica(batch, first_replica + replica, workers.replicas, digest)

        if local_replicas == 1:
            shares = dataset.map(lambda batch, digest: of_local(batch, digest, 0))
        else:  # local replicas take turns at each step
            shares = dataset.flat_map(
                lambda batch, digest: tf.data.Dataset.range(local_replicas).map(
                    lambda replica: of_local(batch, digest, replica)
                )
            )
        return shares.prefetch(tf.data.AUTOTUNE) if read_ahead else without_read_ahead(shares)

    distributed, _ = _distributed(build, workers)
    sizes = {leaf.shape[0] for leaf in tf.nest.flatten(spec)}
    known_size = sizes.pop() if len(sizes) == 1 else None
    return Batches(
        dataset=distributed,
        element_spec=spec,
        sample=lambda rows: take_rows(next(iter(dataset))[0], 0, rows),
        smallest_batch=known_size or 0,
    )


def _sharded_by_tensorflow(
    dataset: tf.data.Dataset, auto_shard: AutoShard | None, workers: Workers
) -> Batches:
    """Returns the batches of a dataset of which workers read different parts."""
    own = with_auto_shard_policy(dataset, auto_shard).prefetch(tf.data.AUTOTUNE)
    return Batches(
        dataset=workers.strategy.experimental_distribute_dataset(own),
        element_spec=dataset.element_spec,
        sample=lambda rows: take_rows(next(iter(dataset)), 0, rows),
    )


def _distributed(build: Build, workers: Workers) -> tuple[Any, Any]:
    """Returns an iterable of each step's batches on this worker, and the spec of their data."""
    local = build(tf.distribute.InputContext(workers.count, workers.index, workers.replicas))
    spec = local.element_spec.data
    # TensorFlow's distributed dataset brings batches to several devices. With one CPU it would add
    # about a tenth to the step time of a tiny model.
    if workers.local_replicas == 1 and not tf.config.list_physical_devices("GPU"):
        return local, spec
    return workers.strategy.distribute_datasets_from_function(build), spec


def in_order(
    source: Source, batch_size: int | None, workers: Workers, preprocess: Preprocess | None
) -> Batches:
    """Returns the global batches of a source in the data's order, for evaluation and prediction."""
    order = Order(len(source), batch_size or 32, shuffle=False)
    return from_source(source, order, workers, training=False, preprocess=preprocess)


def for_evaluation(
    dataset: tf.data.Dataset,
    workers: Workers,
    steps: int | None,
    preprocess: Preprocess | None,
    auto_shard: AutoShard | None,
) -> Batches:
    """Returns the batches of a dataset, once, for evaluation or prediction; a collective.

    Args:
        dataset: global batches, ``x`` or ``(x[, y[, sample_weight]])``.
        workers: the workers.
        steps: batches to read; None reads to the end.
        preprocess: applied to the features of each example.
        auto_shard: how workers shard the dataset; None uses the dataset's options.

    Raises:
        BadInput: if the dataset never ends and ``steps`` is None, or its files can't be sharded as
            requested.
    """
    auto_shard = check_evaluation(dataset, workers, steps, auto_shard)
    dataset = preprocessed(dataset, preprocess)
    if auto_shard != "data":
        return _sharded_by_tensorflow(dataset, auto_shard, workers)
    return _shared(dataset, workers, read_ahead=reads_ahead(dataset))


def check_evaluation(
    dataset: tf.data.Dataset, workers: Workers, steps: int | None, auto_shard: AutoShard | None
) -> AutoShard | None:
    """Returns how workers shard a dataset to evaluate; raises as ``for_evaluation``."""
    check_ends(dataset, steps)
    return sharding.choose_auto_shard(dataset, auto_shard, workers, training=False)


def check_ends(dataset: tf.data.Dataset, steps: int | None) -> None:
    """Raises BadInput if a dataset to evaluate or predict never ends, and ``steps`` is None."""
    if steps is None and dataset.cardinality() == tf.data.INFINITE_CARDINALITY:
        raise BadInput(
            "the dataset to evaluate or predict never ends: give steps (validation_steps), or "
            "leave out repeat()"
        )


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


@marked(READING)
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
        workers.settle()
        raise BadInput(
            f"the workers' datasets have {lengths} batches, in the workers' order: they have to "
            "be equally long (build the whole dataset on every worker; tfdp shards it)"
        )
    if length == 0:
        raise BadInput("the dataset is empty: it has to have at least one example")
    return length


def check_batches_are_alike(batches: int, digest: int, workers: Workers) -> None:
    """Raises BadInput, on all workers, if they have read different batches; a collective.

    Args:
        batches: number of global batches that this worker has read.
        digest: digest of them.
        workers: the workers.
    """
    rows = workers.gather(np.array([batches, same_examples(digest)], np.int64))
    if (rows != rows[0]).any():
        workers.settle()
        raise BadInput(describe_difference("the first batches" if batches == 1 else "batches"))


def describe_difference(batches: str) -> str:
    """Returns a message that says that ``batches`` differ between workers, and what to change."""
    return (
        f"{batches} of the dataset differ between workers, and every worker has to read the same "
        "global batches. Usually the dataset is shuffled, or draws, without a seed, or it depends "
        "on the worker (TF_CONFIG, a process id, files of the machine). Give shuffle(…, seed=1) "
        "and random functions a seed, or make the dataset after tfdp.connect(), which gives all "
        "workers the same random state; use tf.random.stateless_* and tf.image.stateless_* in a "
        "map with num_parallel_calls; leave out shard(), since tfdp divides each global batch. If "
        "the workers' data differs on purpose, set the dataset's option auto_shard_policy to "
        "AutoShardPolicy.OFF"
    )


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
