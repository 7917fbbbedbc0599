"""Sources: examples that know their number and can be read at any index.

That is all that exact order, sharding and resuming need: they become arithmetic (``tfdp.order``),
and a worker reads its own slice of a global batch and nothing else.
"""

from __future__ import annotations

import abc
import mmap
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeAlias

import keras
import numpy as np
import tensorflow as tf

from tfdp.data.digest import names_and_sizes, sha256_of
from tfdp.errors import BadInput

Batch = tuple[Any, ...]  # (features,), (features, labels) or (features, labels, sample_weight)
Data: TypeAlias = "Source | tf.data.Dataset"  # what a recipe's functions for data return

_PARALLEL_CALLS = 16  # of a user's function, within a batch
_READ_AHEAD_BYTES = 1 << 17  # what Linux reads around a page that is touched, unless set otherwise


class Source(abc.ABC):
    """Examples ``(features[, labels[, sample_weight]])`` with random access.

    ``tfdp.from_arrays``, ``tfdp.from_tfrecords`` and ``tfdp.from_files`` make them; subclass it for
    data of another kind.
    """

    @property
    def run_length(self) -> int:
        """How many consecutive examples stay together when shuffled, as they are fast to read."""
        return 1

    @abc.abstractmethod
    def __len__(self) -> int:
        """How many examples there are."""

    @abc.abstractmethod
    def read(self, indices: tf.Tensor) -> Batch:
        """Reads a batch, by TensorFlow ops, inside of tf.data.

        Args:
            indices: int64[n], each in ``[0, len(self))``; n is 0 for a replica that has nothing to
                do at a step.

        Returns:
            The n examples, stacked: every leaf has n as its first dimension.
        """

    def element_spec(self) -> Batch:
        """The ``tf.TensorSpec`` of every leaf of one example."""
        read = tf.function(self.read).get_concrete_function(tf.TensorSpec([None], tf.int64))
        return tf.nest.map_structure(  # type: ignore[no-any-return]
            lambda leaf: tf.TensorSpec(leaf.shape[1:], leaf.dtype), read.structured_outputs
        )

    def sha256(self) -> str:
        """Tells data from other data, as far as that can be told without reading all of it.

        It is of the number of examples and what they look like; sources that know more say more.
        """
        return sha256_of(self.element_spec(), len(self))


class _Arrays(Source):
    def __init__(self, arrays: Batch) -> None:
        self.arrays = arrays
        self._tensors: Batch | None = None
        leaves = tf.nest.flatten(arrays)
        lengths = {len(leaf) if leaf.ndim else None for leaf in leaves}
        if len(lengths) != 1 or None in lengths:
            raise BadInput(
                f"arrays have the shapes {[leaf.shape for leaf in leaves]}: the first dimension "
                "counts the examples, so it has to be the same for all"
            )
        self._length = len(leaves[0])
        for leaf in leaves:
            if _is_on_disk(leaf) and leaf[:1].nbytes < _READ_AHEAD_BYTES:
                _read_rows_alone(leaf)

    def __len__(self) -> int:
        return self._length

    @tf.autograph.experimental.do_not_convert
    def read(self, indices: tf.Tensor) -> Batch:
        if self._tensors is None:
            with tf.init_scope():  # once, outside of the graph that this call may be traced into
                self._tensors = tf.nest.map_structure(
                    lambda leaf: leaf if _is_on_disk(leaf) else tf.convert_to_tensor(leaf),
                    self.arrays,
                )
        return tf.nest.map_structure(  # type: ignore[no-any-return]
            lambda leaf: _rows(leaf, indices) if _is_on_disk(leaf) else tf.gather(leaf, indices),
            self._tensors,
        )

    def sha256(self) -> str:
        """Of what is in the arrays; of those on the disk, of names and shapes."""
        structure = tf.nest.map_structure(lambda leaf: leaf.shape, self.arrays)
        leaves = [
            (leaf.filename and Path(leaf.filename).name, leaf.dtype.str)
            if _is_on_disk(leaf)
            else leaf
            for leaf in tf.nest.flatten(self.arrays)
        ]
        return sha256_of(structure, leaves)


def from_arrays(features: Any, labels: Any = None, sample_weight: Any = None) -> Source:
    """Makes a source of arrays in memory.

    Args:
        features: an array (or list of numbers or strings), or a dict, list or tuple of arrays,
            with examples along the first dimension. Floats become ``keras.config.floatx()``, as
            ``Model.fit`` makes them. A ``numpy.memmap`` stays on the disk: each batch reads its
            rows of it.
        labels: likewise, or None.
        sample_weight: float[examples], or None.

    Raises:
        BadInput: if the arrays differ in length, or there are weights without labels.
    """
    if sample_weight is not None and labels is None:
        raise BadInput("there are sample weights but no labels: weights belong to labels")
    examples = [_as_array_of_scalars(part) for part in (features, labels, sample_weight)]
    given = tuple(examples[: 3 - sum(part is None for part in examples)])
    return _Arrays(tf.nest.map_structure(_as_keras_would, given))


def _as_array_of_scalars(part: Any) -> Any:
    """A list of numbers or strings as the array that is meant, anything else as it is."""
    is_flat = isinstance(part, (list, tuple)) and len(part) and np.isscalar(part[0])
    return np.asarray(part) if is_flat else part


def _as_keras_would(leaf: Any) -> np.ndarray:
    array = leaf if _is_on_disk(leaf) else np.asarray(leaf)
    if array.dtype == object:
        raise BadInput(
            f"an array has the dtype object (its first element is {array.flat[0]!r}): "
            "numbers or strings of one type are needed"
        )
    if array.dtype.kind != "f" or _is_on_disk(array):
        return array
    return array.astype(keras.config.floatx())


def _is_on_disk(leaf: Any) -> bool:
    return isinstance(leaf, np.memmap)


def _read_rows_alone(array: Any) -> None:
    """Tells the kernel that rows come in no order, or it reads far more than them, for nothing."""
    while array is not None and not isinstance(array, mmap.mmap):
        array = getattr(array, "base", None)
    if array is not None:
        array.madvise(mmap.MADV_RANDOM)


def _rows(array: np.memmap[Any, Any], indices: tf.Tensor) -> tf.Tensor:
    """Rows of an array on the disk, in the machine's byte order and floats as Keras wants them.

    NumPy reads them, without holding Python's lock: to TensorFlow the array would have to be a
    tensor, which is a copy unless the array happens to be aligned.
    """
    is_float = array.dtype.kind == "f"
    dtype = np.dtype(keras.config.floatx()) if is_float else array.dtype.newbyteorder("=")
    rows = tf.numpy_function(
        lambda places: np.asarray(array[places], dtype), [indices], tf.as_dtype(dtype)
    )
    return tf.ensure_shape(rows, [None, *array.shape[1:]])


class _Files(Source):
    def __init__(self, paths_and_rest: _Arrays, load: Callable[[tf.Tensor], Any]) -> None:
        self._paths_and_rest = paths_and_rest
        self._load = load

    def __len__(self) -> int:
        return len(self._paths_and_rest)

    def read(self, indices: tf.Tensor) -> Batch:
        _, *rest = self._paths_and_rest.read(indices)
        paths, *_ = self._paths_and_rest.read(at_least_one(indices))
        features = each(tf.data.Dataset.from_tensor_slices(paths), self._load, tf.size(indices))
        return (features, *rest)

    def sha256(self) -> str:
        """Of the files' names and sizes, labels and weights."""
        names, *rest = self._paths_and_rest.arrays
        return sha256_of(names_and_sizes(names.tolist()), tf.nest.flatten(rest))


def from_files(
    paths: Iterable[str | os.PathLike[str]],
    labels: Any,
    load: Callable[[tf.Tensor], Any],
    sample_weight: Any = None,
) -> Source:
    """Makes a source of files that hold an example each: images in folders, say.

    Args:
        paths: of the files, in the same order on every worker (sort what a glob gives).
        labels: an array, or a structure of arrays, with a label for each path; None for data that
            is only predicted.
        load: gives the features of one example from its path (string scalar), by TensorFlow ops:
            ``tf.io.read_file``, decode, resize to one shape. Called in parallel.
        sample_weight: float[len(paths)], or None.

    Raises:
        BadInput: if there are no paths, or labels or weights of another number.
    """
    names = np.array([os.fspath(path) for path in paths], dtype=np.str_)
    if not len(names):
        raise BadInput("from_files was given no paths: look at the pattern that they come from")
    paths_and_rest = from_arrays(names, labels, sample_weight)
    assert isinstance(paths_and_rest, _Arrays)
    return _Files(paths_and_rest, load)


def at_least_one(indices: tf.Tensor) -> tf.Tensor:
    """The indices, or a single 0 where there is none: what ``each`` reads for an idle replica."""
    padding = tf.cast(tf.equal(tf.size(indices), 0), tf.int32)
    return tf.concat([indices, tf.zeros(tf.reshape(padding, [1]), tf.int64)], axis=0)


def each(dataset: tf.data.Dataset, function: Callable[..., Any], count: tf.Tensor) -> Any:
    """What ``function`` gives for each element, in parallel, stacked in the elements' order.

    Args:
        dataset: at least one element.
        function: of one element.
        count: int32 scalar, how many of the elements are wanted.
    """
    options = tf.data.Options()  # of a pipeline that lives for one batch: nothing to tune
    options.autotune.enabled = False
    options.experimental_optimization.apply_default_optimizations = False
    mapped = dataset.map(function, num_parallel_calls=_PARALLEL_CALLS, deterministic=True)
    size = tf.cast(tf.maximum(count, 1), tf.int64)
    stacked = mapped.batch(size).with_options(options).get_single_element()
    return tf.nest.map_structure(lambda leaf: leaf[:count], stacked)


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


def data_sha256(data: Any) -> str | None:
    """Returns a digest of data; for a dataset, of its specs and length; None for anything else."""
    if isinstance(data, Source):
        return data.sha256()
    if isinstance(data, tf.data.Dataset):
        return sha256_of(data.element_spec, int(data.cardinality()))
    return None
