"""Sources: examples that know their number and can be read at any index.

That is all that exact order, sharding and resuming need: they become arithmetic (``tfdp.order``),
and a worker reads its own slice of a global batch and nothing else.
"""

from __future__ import annotations

import abc
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfdp.errors import BadInput

Batch = tuple[Any, ...]  # (features,), (features, labels) or (features, labels, sample_weight)


class Source(abc.ABC):
    """Examples ``(features[, labels[, sample_weight]])`` with random access.

    ``tfdp.from_arrays`` makes one; subclass it for data of another kind.
    """

    @abc.abstractmethod
    def __len__(self) -> int:
        """How many examples there are."""

    @abc.abstractmethod
    def read(self, indices: tf.Tensor) -> Batch:
        """Reads a batch, by TensorFlow ops, inside of tf.data.

        Args:
            indices: int64[n], each in ``[0, len(self))``.

        Returns:
            The n examples, stacked: every leaf has n as its first dimension.
        """

    def element_spec(self) -> Batch:
        """The ``tf.TensorSpec`` of every leaf of one example."""
        read = tf.function(self.read).get_concrete_function(tf.TensorSpec([None], tf.int64))
        return tf.nest.map_structure(  # type: ignore[no-any-return]
            lambda leaf: tf.TensorSpec(leaf.shape[1:], leaf.dtype), read.structured_outputs
        )


class _Arrays(Source):
    def __init__(self, arrays: Batch) -> None:
        self._arrays = arrays
        self._tensors: Batch | None = None
        leaves = tf.nest.flatten(arrays)
        lengths = {len(leaf) if leaf.ndim else None for leaf in leaves}
        if len(lengths) != 1 or None in lengths:
            raise BadInput(
                f"arrays have the shapes {[leaf.shape for leaf in leaves]}: the first dimension "
                "counts the examples, so it has to be the same for all"
            )
        self._length = len(leaves[0])

    def __len__(self) -> int:
        return self._length

    def read(self, indices: tf.Tensor) -> Batch:
        if self._tensors is None:
            with tf.init_scope():  # once, outside of the graph that this call may be traced into
                self._tensors = tf.nest.map_structure(tf.convert_to_tensor, self._arrays)
        return tf.nest.map_structure(  # type: ignore[no-any-return]
            lambda tensor: tf.gather(tensor, indices), self._tensors
        )


def from_arrays(features: Any, labels: Any = None, sample_weight: Any = None) -> Source:
    """Makes a source of arrays in memory.

    Args:
        features: an array, or a dict, list or tuple of arrays, with examples along the first
            dimension. Floats become ``keras.config.floatx()``, as ``Model.fit`` makes them.
        labels: likewise, or None.
        sample_weight: float[examples], or None.

    Raises:
        BadInput: if the arrays differ in length, or there are weights without labels.
    """
    if sample_weight is not None and labels is None:
        raise BadInput("there are sample weights but no labels: weights belong to labels")
    examples = (features, labels, sample_weight)
    given = examples[: 3 - sum(part is None for part in examples)]
    return _Arrays(tf.nest.map_structure(_as_keras_would, given))


def _as_keras_would(leaf: Any) -> np.ndarray:
    array = np.asarray(leaf)
    if array.dtype == object:
        raise BadInput(
            f"an array has the dtype object (its first element is {array.flat[0]!r}): "
            "numbers or strings of one type are needed"
        )
    return array.astype(keras.config.floatx()) if array.dtype.kind == "f" else array


def as_data(x: Any, y: Any = None, sample_weight: Any = None) -> Source | tf.data.Dataset:
    """What users pass as data: a source or dataset as it is, arrays as a source.

    Raises:
        BadInput: if labels or weights come beside a source or dataset, which have their own, or
            the dataset is distributed already.
    """
    if isinstance(x, tf.distribute.DistributedDataset):
        raise BadInput(
            "the dataset is distributed already: pass the tf.data.Dataset it was made of"
        )
    if not isinstance(x, (Source, tf.data.Dataset)):
        return from_arrays(x, y, sample_weight)
    if y is not None or sample_weight is not None:
        raise BadInput(
            f"labels or weights were given beside a {type(x).__name__}, "
            "which has to give (features, labels[, sample_weight]) itself"
        )
    return x
