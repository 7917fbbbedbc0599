"""A recipe's ``preprocess``, which takes single examples, on the batches of a pipeline."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from tfdp.data.order import to_stateless_seed
from tfdp.data.replica_batch import count_rows
from tfdp.data.sources import Batch, Source

Preprocess = Callable[[Any, bool, tf.Tensor], Any]  # (features, training, seed) -> model inputs


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


def as_element(batch: Batch) -> Any:
    """Returns a batch as ``train_step`` gets it: features alone stay alone, as in ``Model.fit``."""
    is_alone = len(batch) == 1 and not isinstance(batch[0], (list, tuple))
    return batch[0] if is_alone else batch


def preprocessed(
    dataset: tf.data.Dataset, preprocess: Preprocess | None, seed: int | None = None
) -> tf.data.Dataset:
    """Returns a dataset of batches with each example preprocessed.

    A dataset's examples have no indices, so seeds are derived from the step and the place in the
    batch.

    Args:
        dataset: batches ``x`` or ``(x[, y[, sample_weight]])``.
        preprocess: applied to the features of each example; None leaves the dataset as it is.
        seed: the run's seed, for training; None for evaluation, where seeds are the same in all
            batches.
    """
    if preprocess is None:
        return dataset
    apply = make_dataset_preprocess(preprocess, dataset.element_spec, seed)
    if seed is None:  # TensorFlow can't shard by file behind a numbering
        return dataset.map(
            lambda *batch: apply(tf.constant(0, tf.int64), *batch),
            num_parallel_calls=tf.data.AUTOTUNE,
        )
    numbered = dataset.scan(np.int64(0), lambda step, batch: (step + 1, (step, *as_tuple(batch))))
    return numbered.map(apply, num_parallel_calls=tf.data.AUTOTUNE)


def make_dataset_preprocess(
    preprocess: Preprocess, element_spec: Any, seed: int | None = None
) -> Callable[..., Any]:
    """Returns a function that preprocesses a dataset's batch: of a step, and ``as_tuple`` of it.

    Args:
        preprocess: applied to the features of each example.
        element_spec: of the dataset.
        seed: see ``preprocessed``.
    """
    preprocess_batch = make_batch_preprocess(preprocess, training=seed is not None)
    is_tuple = isinstance(element_spec, tuple)

    @tf.autograph.experimental.do_not_convert
    def apply(step: tf.Tensor, features: Any, *rest: Any) -> Any:
        seeds = example_seeds(seed or 0, step, tf.range(count_rows(features)))
        features = preprocess_batch(features, seeds)
        return (features, *rest) if is_tuple else as_element((features,))

    return apply  # type: ignore[no-any-return]


def make_source_reader(
    source: Source, preprocess: Preprocess | None, training: bool, seed: int
) -> Callable[[tf.Tensor, tf.Tensor], Batch]:
    """Returns a function that reads and preprocesses the examples at ``indices`` of ``epoch``."""
    if preprocess is None:
        return lambda epoch, indices: source.read(indices)
    preprocess_batch = make_batch_preprocess(preprocess, training)

    def read(epoch: tf.Tensor, indices: tf.Tensor) -> Batch:
        features, *rest = source.read(indices)
        return (preprocess_batch(features, example_seeds(seed, epoch, indices)), *rest)

    return read


def example_seeds(seed: int, epoch: tf.Tensor, indices: tf.Tensor) -> tf.Tensor:
    """Returns a seed for each example (int32[n, 2]), from the run's seed, epoch and index."""
    fold_in = tf.random.experimental.stateless_fold_in  # returns [hash of the seed, the data]
    epoch_seed = fold_in(fold_in(to_stateless_seed(seed), tf.cast(epoch, tf.int32)), 0)[0]
    columns = [tf.fill(tf.shape(indices), epoch_seed), tf.cast(indices, tf.int32)]
    return tf.stack(columns, axis=1)
