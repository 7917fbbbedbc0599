"""Batches that Python makes: ``keras.utils.PyDataset``, generators, and torch's DataLoaders.

They become datasets of global batches. Every worker makes all of them, in one thread, and computes
its rows of each.
"""

from __future__ import annotations

import itertools
import random
import types
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfdp.data import arrays
from tfdp.data.read_ahead import without_read_ahead
from tfdp.errors import BadInput, shortened

_PEEKED = 2  # batches from which the shapes are known, as in Keras


def is_python_batches(data: Any) -> bool:
    """Returns whether ``as_dataset`` takes ``data``."""
    return isinstance(data, (keras.utils.PyDataset, types.GeneratorType)) or _is_loader(data)


def as_dataset(
    data: Any, *, shuffle: bool = False, needs_length: bool = False, is_prediction: bool = False
) -> tf.data.Dataset:
    """Returns a dataset of the batches of ``data``.

    Args:
        data: a PyDataset, a generator of tuples, or a DataLoader.
        shuffle: whether each epoch has the batches of a PyDataset in another order, drawn from
            ``random`` as by Keras.
        needs_length: whether to refuse a generator, which has no length.
        is_prediction: whether a PyDataset has to stay in its present order.

    Raises:
        BadInput: if there is no batch, a batch is no tuple of up to three, or a length is missing.
    """
    if isinstance(data, keras.utils.PyDataset):
        return _of_py_dataset(data, shuffle, is_prediction)
    if isinstance(data, types.GeneratorType):
        if needs_length:
            raise BadInput("a generator has no length, so an epoch has none: give steps_per_epoch")
        return _of_generator(data)
    length = len(data) if hasattr(data.dataset, "__len__") else tf.data.UNKNOWN_CARDINALITY
    return _dataset(itertools.islice(data, _PEEKED), lambda: data, length)


def _of_py_dataset(
    data: keras.utils.PyDataset, shuffle: bool, is_prediction: bool
) -> tf.data.Dataset:
    length = data.num_batches

    def epoch() -> Iterator[Any]:
        places: Iterable[int] = itertools.count()
        if length is not None:
            order = list(range(length))
            if shuffle:
                random.shuffle(order)
            places = order
        data.on_epoch_begin()
        for number, place in enumerate(places):
            batch = data[place]
            if number + 1 == length:
                data.on_epoch_end()  # before TensorFlow may read ahead into the next epoch
            yield batch

    peeked = [data[i] for i in range(_PEEKED if length is None else min(_PEEKED, length))]
    if not is_prediction:
        data.on_epoch_end()  # Keras calls it before the first epoch, too
    return _dataset(peeked, epoch, tf.data.INFINITE_CARDINALITY if length is None else length)


def _of_generator(generator: types.GeneratorType[Any, Any, Any]) -> tf.data.Dataset:
    peeked = list(itertools.islice(generator, _PEEKED))
    for batch in peeked:
        if not isinstance(batch, tuple):
            raise BadInput(
                f"the generator yields a {type(batch).__name__}, {shortened(batch)}: it has to "
                "yield tuples, (x,), (x, y) or (x, y, sample_weight)"
            )
    readers = itertools.count()

    def read() -> Iterator[Any]:
        if next(readers):
            raise BadInput(
                "the generator has ended, and can't start again: it has to yield "
                "steps_per_epoch * epochs batches (while True: …)"
            )
        yield from itertools.chain(peeked, generator)

    return _dataset(peeked, read)


def _is_loader(data: Any) -> bool:
    return any(
        each.__name__ == "DataLoader" and each.__module__.startswith("torch.")
        for each in type(data).__mro__
    )


def _dataset(
    peeked: Iterable[Any],
    read: Callable[[], Iterable[Any]],
    length: int = tf.data.UNKNOWN_CARDINALITY,
) -> tf.data.Dataset:
    """Returns a dataset of batches.

    Args:
        peeked: the first batches.
        read: returns an epoch's batches.
        length: number of batches in an epoch, as TensorFlow counts.
    """
    specs = [tf.nest.map_structure(_spec, _as_batch(batch)) for batch in peeked]
    if not specs:
        raise BadInput("the data is empty: it has to give at least one batch")
    spec = tf.nest.map_structure(_common_spec, *specs)
    dataset = tf.data.Dataset.from_generator(lambda: map(_as_batch, read()), output_signature=spec)
    dataset = without_read_ahead(dataset.prefetch(tf.data.AUTOTUNE))  # but within an epoch
    if length == tf.data.UNKNOWN_CARDINALITY:
        return dataset
    return dataset.apply(tf.data.experimental.assert_cardinality(length))


def _as_batch(batch: Any) -> Any:
    """Returns a batch as a dict of features, or a tuple of features, labels and weights."""
    if not isinstance(batch, (dict, list, tuple)):
        batch = (batch,)
    if not isinstance(batch, dict) and len(batch) not in (1, 2, 3):
        raise BadInput(
            f"a batch is {shortened(batch)}: it has to be a tuple (x,), (x, y) or "
            "(x, y, sample_weight), or a dict of features"
        )
    batch = batch if isinstance(batch, dict) else tuple(batch)
    return _map_arrays(_as_tensor, batch)


def _map_arrays(function: Callable[[Any], Any], value: Any) -> Any:
    """Applies a function to each array of a structure; lists become tuples."""
    if isinstance(value, dict):
        return {name: _map_arrays(function, each) for name, each in value.items()}
    if isinstance(value, (list, tuple)) and not (len(value) and np.isscalar(value[0])):
        return tuple(_map_arrays(function, each) for each in value)
    return function(value)


def _as_tensor(value: Any) -> Any:
    tensor = arrays.as_tensor(value)
    if not tensor.shape.rank:
        raise BadInput(
            f"a batch has {shortened(value)} in it: each array needs the examples as its first "
            "dimension"
        )
    return tensor


def _spec(tensor: Any) -> Any:
    return tf.type_spec_from_value(tensor)


def _common_spec(first: Any, *others: Any) -> Any:
    """Returns a spec of any number of rows that is compatible with the given ones."""
    sizes = [
        sizes[0] if len(set(sizes)) == 1 else None
        for sizes in zip(*(spec.shape.as_list() for spec in (first, *others)), strict=True)
    ]
    shape = [None, *sizes[1:]]
    if isinstance(first, tf.RaggedTensorSpec):
        return tf.RaggedTensorSpec(shape, first.dtype, first.ragged_rank, first.row_splits_dtype)
    kind = tf.SparseTensorSpec if isinstance(first, tf.SparseTensorSpec) else tf.TensorSpec
    return kind(shape, first.dtype)
