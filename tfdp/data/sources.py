"""Sources: data of known length, in which any example can be read by its index.

Exact order, sharding and resuming need nothing else: they become arithmetic (``tfdp.data.order``),
and a worker reads only its own slice of a global batch.
"""

from __future__ import annotations

import abc
import os
from collections.abc import Callable, Iterable
from typing import Any, TypeAlias

import numpy as np
import tensorflow as tf

from tfdp.data import arrays as arrays_module
from tfdp.data import python_batches
from tfdp.data.digest import names_and_sizes, sha256_of
from tfdp.errors import BadInput

Batch = tuple[Any, ...]  # (features,), (features, labels) or (features, labels, sample_weight)
Data: TypeAlias = "Source | tf.data.Dataset"  # returned by a recipe's train_data and eval_data

_PARALLEL_CALLS = 16  # of a user's function, within one batch
_SAMPLED_ROWS = 16  # of arrays, to compare workers


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
        return tf.nest.map_structure(spec_of_one, read.structured_outputs)  # type: ignore[no-any-return]

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


def spec_of_one(batch: Any) -> Any:
    """Returns the spec of one example, given that of a batch, dense, ragged or sparse."""
    if isinstance(batch, (tf.RaggedTensor, tf.RaggedTensorSpec)):
        ragged_rank = batch.ragged_rank - 1
        if ragged_rank:
            return tf.RaggedTensorSpec(batch.shape[1:], batch.dtype, ragged_rank)
    elif isinstance(batch, (tf.SparseTensor, tf.SparseTensorSpec)):
        return tf.SparseTensorSpec(batch.shape[1:], batch.dtype)
    return tf.TensorSpec(batch.shape[1:], batch.dtype)


class _ArraySource(Source):
    def __init__(self, arrays: Batch) -> None:
        self.arrays = arrays
        self._tensors: Batch | None = None
        shapes = [arrays_module.shape_of(leaf) for leaf in tf.nest.flatten(arrays)]
        lengths = {shape[0] if shape else None for shape in shapes}
        if len(lengths) != 1 or None in lengths:
            raise BadInput(
                f"arrays have the shapes {shapes}: the first dimension "
                "counts the examples, so it has to be the same for all"
            )
        self._length = int(shapes[0][0] or 0)
        for leaf in tf.nest.flatten(arrays):
            arrays_module.prepare(leaf)

    def __len__(self) -> int:
        return self._length

    @tf.autograph.experimental.do_not_convert
    def read(self, indices: tf.Tensor) -> Batch:
        if self._tensors is None:
            with tf.init_scope():  # once, outside of the graph that this call may be traced into
                self._tensors = tf.nest.map_structure(_in_memory, self.arrays)
        return tf.nest.map_structure(  # type: ignore[no-any-return]
            lambda leaf: arrays_module.take(leaf, indices), self._tensors
        )

    def sha256(self) -> str:
        """Returns a digest of the arrays' contents; for arrays on disk, of names and shapes."""
        structure = tf.nest.map_structure(arrays_module.shape_of, self.arrays)
        return sha256_of(structure, list(map(arrays_module.content, tf.nest.flatten(self.arrays))))

    def sample_sha256(self) -> str:
        """Returns a digest of rows of the arrays: the first, the last, and some between."""
        places = np.unique(np.linspace(0, len(self) - 1, _SAMPLED_ROWS, dtype=np.int64))
        rows = tf.nest.flatten(self.read(tf.constant(places)), expand_composites=True)
        return sha256_of([arrays_module.content(leaf) for leaf in rows])


def _in_memory(array: Any) -> Any:
    is_numpy = isinstance(array, np.ndarray) and not arrays_module.is_on_disk(array)
    return tf.convert_to_tensor(array) if is_numpy else array


def from_arrays(features: Any, labels: Any = None, sample_weight: Any = None) -> Source:
    """Returns a source of arrays.

    Args:
        features: an array, or a dict, list or tuple of arrays, with examples along the first
            dimension: of NumPy, TensorFlow (also ragged and sparse ones), SciPy, pandas or torch,
            or a list of numbers or strings. Floats are cast to ``keras.config.floatx()``, as by
            ``Model.fit``. A ``numpy.memmap`` stays on disk: each batch reads its rows.
        labels: as ``features``, or None.
        sample_weight: float[examples], or None.

    Raises:
        BadInput: if the arrays differ in length, or weights come without labels.
    """
    if sample_weight is not None and labels is None:
        raise BadInput("sample_weight is given without labels: give both")
    optional = [value for value in (labels, sample_weight) if value is not None]
    return _ArraySource(tuple(arrays_module.as_arrays(value) for value in (features, *optional)))


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


def as_data(
    x: Any,
    y: Any = None,
    sample_weight: Any = None,
    *,
    shuffle: bool = False,
    needs_length: bool = False,
    is_prediction: bool = False,
) -> Source | tf.data.Dataset:
    """Returns a user's data as a source or dataset: arrays become a source.

    Args:
        x: a source, a dataset, arrays, a ``keras.utils.PyDataset``, a generator, or a DataLoader of
            torch.
        y: labels, if ``x`` is arrays.
        sample_weight: weights, if ``x`` is arrays; a single array is for all outputs.
        shuffle: whether a PyDataset's batches come in another order in each epoch.
        needs_length: whether to refuse a generator, which has no length.
        is_prediction: whether a PyDataset has to stay in its present order.

    Raises:
        BadInput: if labels or weights are passed with data that contains its own, the dataset is
            distributed already, or the data is of another kind.
    """
    if isinstance(x, tf.distribute.DistributedDataset):
        raise BadInput(
            "the dataset is distributed already: pass the tf.data.Dataset it was made of"
        )
    is_python = python_batches.is_python_batches(x)
    if not isinstance(x, (Source, tf.data.Dataset)) and not is_python:
        if isinstance(y, (dict, list, tuple)) and hasattr(sample_weight, "shape"):
            y, weights = arrays_module.as_arrays(y), sample_weight
            if tf.nest.is_nested(y):
                sample_weight = tf.nest.map_structure(lambda _: weights, y)
        return from_arrays(x, y, sample_weight)
    if y is not None or sample_weight is not None:
        raise BadInput(
            f"labels or weights were given beside a {type(x).__name__}, "
            "which has to contain (features, labels[, sample_weight]) itself"
        )
    if is_python:
        return python_batches.as_dataset(
            x, shuffle=shuffle, needs_length=needs_length, is_prediction=is_prediction
        )
    return x


def data_sha256(data: Any) -> str | None:
    """Returns a digest of data; for a dataset, of its specs and length; None for anything else."""
    if isinstance(data, Source):
        return data.sha256()
    if isinstance(data, tf.data.Dataset):
        return sha256_of(data.element_spec, int(data.cardinality()))
    return None
