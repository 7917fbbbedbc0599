"""The kinds of arrays that ``Model.fit`` takes, as arrays whose rows TensorFlow can read.

NumPy arrays (in memory or on disk), tensors, ``tf.RaggedTensor``, ``tf.SparseTensor``, matrices of
SciPy, DataFrames and Series of pandas, tensors of torch, and whatever has ``__array__``. Libraries
that may not be installed are recognized by the names of their types.
"""

from __future__ import annotations

import dataclasses
import mmap
from pathlib import Path
from typing import Any, TypeAlias

import keras
import numpy as np
import tensorflow as tf

from tfdp.errors import BadInput, shortened

_READ_AHEAD_BYTES = 1 << 17  # Linux reads so much around an accessed page, by default


@dataclasses.dataclass(frozen=True, eq=False)
class SparseRows:
    """A sparse tensor of which any rows can be taken.

    Args:
        places: the indices of the values of each row, int64[rows, (values), rank].
        values: the values of each row, [rows, (values)].
        shape: shape of the tensor.
    """

    places: tf.RaggedTensor
    values: tf.RaggedTensor
    shape: tuple[int, ...]

    @classmethod
    def of(cls, sparse: tf.SparseTensor) -> SparseRows:
        """Returns the rows of a sparse tensor."""
        sparse = tf.sparse.reorder(sparse)
        rows, count = sparse.indices[:, 0], sparse.dense_shape[0]
        return cls(
            tf.RaggedTensor.from_value_rowids(sparse.indices, rows, count),
            tf.RaggedTensor.from_value_rowids(sparse.values, rows, count),
            tuple(sparse.dense_shape.numpy().tolist()),
        )

    def take(self, indices: tf.Tensor) -> tf.SparseTensor:
        """Returns the rows at ``indices`` (int64[n])."""
        places, values = tf.gather(self.places, indices), tf.gather(self.values, indices)
        rows = tf.cast(places.value_rowids(), tf.int64)[:, tf.newaxis]
        shape = tf.concat([tf.shape(indices, tf.int64), self.shape[1:]], axis=0)
        taken = tf.SparseTensor(
            tf.concat([rows, places.flat_values[:, 1:]], axis=1), values.flat_values, shape
        )
        taken.set_shape([None, *self.shape[1:]])
        return taken


Array: TypeAlias = Any  # np.ndarray, tf.Tensor, tf.RaggedTensor or SparseRows


def as_arrays(value: Any) -> Any:
    """Returns a structure of arrays, with tuples in place of lists: a dataset would stack a list.

    A list of numbers or strings is an array.
    """
    if isinstance(value, dict):
        return {name: as_arrays(each) for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        if len(value) and np.isscalar(value[0]):
            return as_array(np.asarray(value))
        return tuple(as_arrays(each) for each in value)
    return as_array(value)


def as_array(value: Any) -> Array:
    """Returns an array; floats in memory are cast to ``keras.config.floatx()``, as by Keras.

    Raises:
        BadInput: if it is no array of numbers or strings.
    """
    array = _native(value)
    if isinstance(array, tf.SparseTensor):
        return SparseRows.of(_as_floatx(array))
    if tf.is_tensor(array):
        return _as_floatx(array)
    if array.dtype.kind != "f" or is_on_disk(array):
        return array
    return array.astype(keras.config.floatx())


def as_tensor(value: Any) -> Any:
    """Returns an array as a tensor of its own dtype, dense, ragged or sparse."""
    array = _native(value)
    return array if tf.is_tensor(array) else tf.convert_to_tensor(array)


def _native(value: Any) -> Any:
    """Returns an array of any library as one of NumPy or TensorFlow."""
    if is_on_disk(value) or isinstance(value, (tf.SparseTensor, tf.RaggedTensor)):
        return value
    library = type(value).__module__.partition(".")[0]
    if library == "scipy" and hasattr(value, "tocsr"):
        value = value.tocsr().tocoo()
        places = np.stack([value.row, value.col], axis=1).astype(np.int64)
        return tf.SparseTensor(places, value.data, value.shape)
    if library == "pandas":
        value = value.to_numpy() if value.ndim == 2 else value.to_numpy()[:, np.newaxis]
    elif library == "torch":
        value = value.detach().cpu().numpy()
    array = np.asarray(value)
    return _of_objects(array) if array.dtype == object else array


def _as_floatx(tensor: Any) -> Any:
    return tf.cast(tensor, keras.config.floatx()) if tensor.dtype.is_floating else tensor


def _of_objects(array: np.ndarray) -> Array:
    """Returns strings as a tensor (NumPy would give each the size of the longest)."""
    if all(isinstance(each, (str, bytes)) for each in array.flat):
        return tf.convert_to_tensor(array, tf.string)
    try:
        numbers = np.array(array.tolist())
    except ValueError:  # rows of different lengths
        numbers = array
    if numbers.dtype.kind not in "biuf" or not numbers.ndim:
        raise BadInput(
            f"an array has the dtype object (its first element is {shortened(array.flat[0])}): "
            "numbers or strings of one type are needed"
        )
    return numbers


def shape_of(array: Array) -> tuple[int | None, ...]:
    """Returns the shape of an array; lengths that differ between rows are None."""
    return tuple(array.shape)


def take(array: Any, indices: tf.Tensor) -> Any:
    """Returns the rows at ``indices`` (int64[n]) by TensorFlow ops.

    Args:
        array: a result of ``as_array``, in memory as a tensor.
        indices: each below the length.
    """
    if is_on_disk(array):
        return _read_rows(array, indices)
    return array.take(indices) if isinstance(array, SparseRows) else tf.gather(array, indices)


def content(array: Array) -> Any:
    """Returns what identifies an array, for a digest: its values, or a file's name and dtype."""
    if is_on_disk(array):
        return array.filename and Path(array.filename).name, array.dtype.str
    if isinstance(array, SparseRows):
        return [array.shape, content(array.places), content(array.values)]
    if isinstance(array, tf.RaggedTensor):
        return [content(each) for each in tf.nest.flatten(array, expand_composites=True)]
    values = np.asarray(array)
    return values.tolist() if values.dtype == object else values


def is_on_disk(array: Any) -> bool:
    """Returns whether an array stays on disk, and each batch reads its rows."""
    return isinstance(array, np.memmap)


def prepare(array: Array) -> None:
    """Disables the kernel's read-ahead for an array on disk whose rows are read in random order."""
    if not is_on_disk(array) or array[:1].nbytes >= _READ_AHEAD_BYTES:
        return
    buffer: Any = array
    while buffer is not None and not isinstance(buffer, mmap.mmap):
        buffer = getattr(buffer, "base", None)
    if buffer is not None:
        buffer.madvise(mmap.MADV_RANDOM)


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
