"""Encodes columns or rows of features as tf.Example messages.

A tf.Example has three kinds of features: float32, int64 and bytes. Booleans and all integers become
int64, all floats float32, and text UTF-8.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from serving import tensors
from serving.client import encoding
from serving.client.errors import InvalidInput
from serving.protos import serving_pb2
from serving.tensors import Array


def encode(features: Any) -> list[serving_pb2.Example]:
    """Returns one message for each example.

    Args:
        features: a mapping of names to arrays or lists, whose first dimension is the examples, or a
            sequence with a mapping of names to values for each example. A value may be a scalar or
            of any shape (a tf.Example stores it flat), and examples may lack a name.

    Raises:
        InvalidInput: a feature can't be encoded; the message names it.
    """
    if isinstance(features, Mapping):
        columns = {name: _rows_of(name, values) for name, values in features.items()}
        lengths = {name: len(rows) for name, rows in columns.items()}
        if len(set(lengths.values())) > 1:
            counts = ", ".join(f"{name!r} has {length}" for name, length in lengths.items())
            raise InvalidInput(f"all features need the same number of examples: {counts}")
        count = next(iter(lengths.values()), 0)
    elif isinstance(features, Sequence) and all(isinstance(row, Mapping) for row in features):
        count = len(features)
        names = dict.fromkeys(name for row in features for name in row)
        columns = {name: [row.get(name) for row in features] for name in names}
    else:
        raise InvalidInput(
            f"features are {type(features).__name__}: give a mapping of names to arrays, or a list "
            "of mappings, one for each example"
        )
    examples = [serving_pb2.Example() for _ in range(count)]
    for name, rows in columns.items():
        try:
            _write_column(name, rows, [example.features.feature for example in examples])
        except (TypeError, ValueError) as error:
            raise InvalidInput(f"feature {name!r}: {error}") from None
    return examples


def encode_one(features: Mapping[str, Any]) -> serving_pb2.Example:
    """Returns one message for a mapping of names to values."""
    if not isinstance(features, Mapping):
        raise InvalidInput(f"context is {type(features).__name__}: give a mapping of names")
    return encode([features])[0]


def _rows_of(name: str, values: Any) -> Any:
    if tensors.has_dtype(values):
        values = np.asarray(values)
    if not (isinstance(values, Sequence) or np.ndim(values)) or isinstance(values, str | bytes):
        raise InvalidInput(f"feature {name!r} has no examples: give a list or an array of values")
    return values


def _write_column(name: str, rows: Any, maps: list[Any]) -> None:
    """Writes one feature of all examples; it has the same kind in all of them."""
    kinds = set()
    arrays: list[Array | None] = []
    for row in rows:
        array = None if row is None else tensors.as_array(row).reshape(-1)
        arrays.append(array)
        if array is not None and (array.size or tensors.has_dtype(row)):
            kinds.add(_kind(array))
    if "bytes" in kinds and len(kinds) > 1:
        raise ValueError("text and numbers are mixed")
    if "bytes" in kinds:
        write = _write_bytes
    else:
        write = _write_ints if kinds == {"int64"} else _write_floats
    for features, array in zip(maps, arrays, strict=True):
        if array is not None:
            write(features[name], array)


def _kind(array: Array) -> str:
    dtype = array.dtype
    if dtype.kind in "SUTO":
        return "bytes"
    if dtype.kind in "biu":
        return "int64"
    if dtype.kind == "f" or dtype.name == "bfloat16":
        return "float32"
    raise ValueError(f"a tf.Example holds floats, integers and bytes, not {dtype}")


def _write_floats(feature: Any, values: Array) -> None:
    # Parsing a serialized list is a hundred times faster than passing Python numbers.
    feature.float_list.MergeFromString(encoding.encode_float_list(values))


def _write_ints(feature: Any, values: Array) -> None:
    feature.int64_list.SetInParent()  # marks the kind also if the list is empty
    if values.dtype == bool:
        values = values.astype(np.int64)
    feature.int64_list.value.extend(values.tolist())


def _write_bytes(feature: Any, values: Array) -> None:
    feature.bytes_list.SetInParent()
    feature.bytes_list.value.extend(
        value.encode() if isinstance(value, str) else value for value in values.tolist()
    )
