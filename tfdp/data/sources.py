"""Sources: data of known length, in which any example can be read by its index.

Exact order, sharding and resuming need nothing else: they become arithmetic (``tfdp.data.order``),
and a worker reads only its own slice of a global batch.
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
Data: TypeAlias = "Source | tf.data.Dataset"  # returned by a recipe's train_data and eval_data

_PARALLEL_CALLS = 16  # of a user's function, within one batch
_SAMPLED_ROWS = 16  # of arrays, to compare workers
_READ_AHEAD_BYTES = 1 << 17  # Linux reads so much around an accessed page, by default


class Source(abc.ABC):
    """Examples ``(features[, labels[, sample_weight]])`` with random access.

    ``tfdp.from_arrays``, ``tfdp.from_tfrecords`` and ``tfdp.from_files`` return sources. Subclass
    it for other kinds of data.
    """

    @property
    def run_length(self) -> int:
        """Number of consecutive examples that stay together when shuffled, to be read faster."""
        return 1

    @abc.abstractmethod
    def __len__(self) -> int:
        """Returns the number of examples."""

    @abc.abstractmethod
    def read(self, indices: tf.Tensor) -> Batch:
        """Reads a batch by TensorFlow ops, within a tf.data pipeline.

        Args:
            indices: int64[n], each in ``[0, len(self))``; n is 0 for a replica whose share of a
                global batch is empty.

        Returns:
            The n examples, stacked: n is the first dimension of every leaf.
        """

    def element_spec(self) -> Batch:
        """Returns the ``tf.TensorSpec`` of every leaf of one example."""
        read = tf.function(self.read).get_concrete_function(tf.TensorSpec([None], tf.int64))
        return tf.nest.map_structure(  # type: ignore[no-any-return]
            lambda leaf: tf.TensorSpec(leaf.shape[1:], leaf.dtype), read.structured_outputs
        )

    def sha256(self) -> str:
        """Returns a digest that identifies the data as far as possible without reading all of it.

        By default it covers the number of examples and their specs; subclasses may add more.
        """
        return sha256_of(self.element_spec(), len(self))

    def sample_sha256(self) -> str:
        """Returns a digest of a few examples, by which workers find out that theirs differ.

        It takes no time. By default it covers nothing.
        """
        return ""


class _ArraySource(Source):
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
                _disable_read_ahead(leaf)

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
            lambda leaf: (
                _read_rows(leaf, indices) if _is_on_disk(leaf) else tf.gather(leaf, indices)
            ),
            self._tensors,
        )

    def sha256(self) -> str:
        """Returns a digest of the arrays' contents; for arrays on disk, of names and shapes."""
        structure = tf.nest.map_structure(lambda leaf: leaf.shape, self.arrays)
        leaves = [
            (leaf.filename and Path(leaf.filename).name, leaf.dtype.str)
            if _is_on_disk(leaf)
            else leaf
            for leaf in tf.nest.flatten(self.arrays)
        ]
        return sha256_of(structure, leaves)

    def sample_sha256(self) -> str:
        """Returns a digest of rows of the arrays: the first, the last, and some between."""
        places = np.unique(np.linspace(0, len(self) - 1, _SAMPLED_ROWS, dtype=np.int64))
        return sha256_of([np.asarray(leaf[places]) for leaf in tf.nest.flatten(self.arrays)])


def from_arrays(features: Any, labels: Any = None, sample_weight: Any = None) -> Source:
    """Returns a source of arrays in memory.

    Args:
        features: an array (or list of numbers or strings), or a dict, list or tuple of arrays,
            with examples along the first dimension. Floats are cast to ``keras.config.floatx()``,
            as by ``Model.fit``. A ``numpy.memmap`` stays on disk: each batch reads its rows.
        labels: as ``features``, or None.
        sample_weight: float[examples], or None.

    Raises:
        BadInput: if the arrays differ in length, or weights come without labels.
    """
    if sample_weight is not None and labels is None:
        raise BadInput("sample_weight is given without labels: give both")
    optional = [value for value in (labels, sample_weight) if value is not None]
    batch = tuple(_stack_scalars(value) for value in (features, *optional))
    return _ArraySource(tf.nest.map_structure(_to_keras_array, batch))


def _stack_scalars(value: Any) -> Any:
    """Returns a list of numbers or strings as an array, and anything else unchanged."""
    is_flat = isinstance(value, (list, tuple)) and len(value) and np.isscalar(value[0])
    return np.asarray(value) if is_flat else value


def _to_keras_array(leaf: Any) -> np.ndarray:
    """Returns an array, with floats in memory cast to ``keras.config.floatx()``."""
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


def _disable_read_ahead(array: Any) -> None:
    """Disables the kernel's read-ahead for an array, whose rows are read in random order."""
    while array is not None and not isinstance(array, mmap.mmap):
        array = getattr(array, "base", None)
    if array is not None:
        array.madvise(mmap.MADV_RANDOM)


def _read_rows(array: np.memmap[Any, Any], indices: tf.Tensor) -> tf.Tensor:
    """Reads rows of an array on disk, in native byte order, with floats cast as in memory.

    NumPy reads them, without holding Python's lock. TensorFlow would need the array as a tensor,
    which is a copy unless the array happens to be aligned.
    """
    is_float = array.dtype.kind == "f"
    dtype = np.dtype(keras.config.floatx()) if is_float else array.dtype.newbyteorder("=")
    rows = tf.numpy_function(
        lambda indices: np.asarray(array[indices], dtype), [indices], tf.as_dtype(dtype)
    )
    return tf.ensure_shape(rows, [None, *array.shape[1:]])


class _FileSource(Source):
    def __init__(self, paths_and_rest: _ArraySource, load: Callable[[tf.Tensor], Any]) -> None:
        self._paths_and_rest = paths_and_rest
        self._load = load

    def __len__(self) -> int:
        return len(self._paths_and_rest)

    def read(self, indices: tf.Tensor) -> Batch:
        _, *rest = self._paths_and_rest.read(indices)
        paths, *_ = self._paths_and_rest.read(pad_if_empty(indices))
        dataset = tf.data.Dataset.from_tensor_slices(paths)
        features = map_and_stack(dataset, self._load, tf.size(indices))
        return (features, *rest)

    def sha256(self) -> str:
        """Returns a digest of the files' names and sizes, labels and weights."""
        names, *rest = self._paths_and_rest.arrays
        return sha256_of(names_and_sizes(names.tolist()), tf.nest.flatten(rest))

    def sample_sha256(self) -> str:
        """Returns a digest of a few labels and weights; the files' folder may differ."""
        _, *rest = self._paths_and_rest.arrays
        return _ArraySource(tuple(rest)).sample_sha256() if rest else ""


def from_files(
    paths: Iterable[str | os.PathLike[str]],
    labels: Any,
    load: Callable[[tf.Tensor], Any],
    sample_weight: Any = None,
) -> Source:
    """Returns a source of files with one example each, for instance images in folders.

    Args:
        paths: paths of the files, in the same order on every worker (sort the result of a glob).
        labels: an array, or a structure of arrays, with a label for each path; None for data that
            is only used for prediction.
        load: returns the features of one example from its path (string scalar), by TensorFlow ops:
            ``tf.io.read_file``, decode, resize to one shape. Called in parallel.
        sample_weight: float[len(paths)], or None.

    Raises:
        BadInput: if ``paths`` is empty, or differs in length from labels or weights.
    """
    names = np.array([os.fspath(path) for path in paths], dtype=np.str_)
    if not len(names):
        raise BadInput("paths is empty: check the glob pattern")
    paths_and_rest = from_arrays(names, labels, sample_weight)
    assert isinstance(paths_and_rest, _ArraySource)
    return _FileSource(paths_and_rest, load)


def pad_if_empty(indices: tf.Tensor) -> tf.Tensor:
    """Returns the indices, or a single 0 if there are none, because ``map_and_stack`` needs one."""
    padding = tf.cast(tf.equal(tf.size(indices), 0), tf.int32)
    return tf.concat([indices, tf.zeros(tf.reshape(padding, [1]), tf.int64)], axis=0)


def map_and_stack(dataset: tf.data.Dataset, function: Callable[..., Any], count: tf.Tensor) -> Any:
    """Applies ``function`` to each element, in parallel, and stacks the results in order.

    Args:
        dataset: at least one element.
        function: function of one element.
        count: int32 scalar, the number of leading results to return; may be 0.
    """
    options = tf.data.Options()  # tuning does not pay for a pipeline that lives for one batch
    options.autotune.enabled = False
    options.experimental_optimization.apply_default_optimizations = False
    mapped = dataset.map(function, num_parallel_calls=_PARALLEL_CALLS, deterministic=True)
    size = tf.cast(tf.maximum(count, 1), tf.int64)
    stacked = mapped.batch(size).with_options(options).get_single_element()
    return tf.nest.map_structure(lambda leaf: leaf[:count], stacked)


def as_data(x: Any, y: Any = None, sample_weight: Any = None) -> Source | tf.data.Dataset:
    """Returns a user's data as a source or dataset: arrays become a source.

    Raises:
        BadInput: if labels or weights are passed with a source or dataset, which contains its own,
            or the dataset is distributed already.
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
            "which has to contain (features, labels[, sample_weight]) itself"
        )
    return x


def data_sha256(data: Any) -> str | None:
    """Returns a digest of data; for a dataset, of its specs and length; None for anything else."""
    if isinstance(data, Source):
        return data.sha256()
    if isinstance(data, tf.data.Dataset):
        return sha256_of(data.element_spec, int(data.cardinality()))
    return None
