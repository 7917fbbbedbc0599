"""One part of a model's predictions as a file: TFRecords, arrays of NumPy, or lines of JSON.

A writer takes batch after batch and keeps none of them in memory.
"""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import json
import math
import shutil
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any, Final, Protocol

import numpy as np
import tensorflow as tf

from tfdp.choices import PredictionFormat
from tfdp.errors import BadInput, TrainingError

_COPIED_BYTES = 1 << 20  # at a time


class Writer(Protocol):
    """Writes one part."""

    def write(self, rows: Mapping[str, np.ndarray]) -> None:
        """Adds a batch: rows of each output by its name, as ``as_array`` returns them."""

    def close(self) -> None:
        """Completes the file; without it, the file is of no use."""


class _TFRecords:
    """A ``tf.train.Example`` for each row, whose features are the outputs, flattened."""

    def __init__(self, path: Path) -> None:
        with _errors_of_files():
            self._file = tf.io.TFRecordWriter(str(path))

    def write(self, rows: Mapping[str, np.ndarray]) -> None:
        columns = {name: _flat_features(array) for name, array in rows.items()}
        for values in zip(*columns.values(), strict=True):
            features = tf.train.Features(feature=dict(zip(columns, values, strict=True)))
            example = tf.train.Example(features=features)
            with _errors_of_files():
                self._file.write(example.SerializeToString(deterministic=True))

    def close(self) -> None:
        with _errors_of_files():
            self._file.close()


@contextlib.contextmanager
def _errors_of_files() -> Iterator[None]:
    """Turns TensorFlow's errors of files into Python's."""
    try:
        yield
    except tf.errors.OpError as error:
        raise OSError(error.message.rpartition("; ")[2]) from error


class _Arrays:
    """An ``.npz`` file: an array for each output.

    A file in a zip is written whole before the next one, so each output is collected in a file of
    its own, which has no name and vanishes with the process.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._columns: dict[str, _Column] = {}

    def write(self, rows: Mapping[str, np.ndarray]) -> None:
        for name, array in rows.items():
            column = self._columns.get(name)
            if column is None:
                file = tempfile.TemporaryFile(dir=self._path.parent)  # noqa: SIM115
                column = self._columns[name] = _Column(file, array.dtype, array.shape[1:])
            if array.shape[1:] != column.shape:
                raise TrainingError(
                    f"rows of the output {name!r} have the shape {column.shape}, and then "
                    f"{array.shape[1:]}: an array has rows of one shape, so take tfrecord or jsonl"
                )
            column.file.write(np.ascontiguousarray(array).tobytes())
            column.rows += len(array)

    def close(self) -> None:
        with zipfile.ZipFile(self._path, "w") as archive:
            for name, column in self._columns.items():
                # Without the time, so that the same rows make the same file.
                with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as entry:
                    header = {
                        "descr": np.lib.format.dtype_to_descr(column.dtype),
                        "fortran_order": False,
                        "shape": (column.rows, *column.shape),
                    }
                    np.lib.format.write_array_header_1_0(entry, header)
                    column.file.seek(0)
                    shutil.copyfileobj(column.file, entry, _COPIED_BYTES)
                column.file.close()


@dataclasses.dataclass
class _Column:
    file: IO[bytes]
    dtype: np.dtype[Any]
    shape: tuple[int, ...]  # of a row
    rows: int = 0


class _Lines:
    """A JSON object for each row, in a line."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("w", encoding="utf-8")

    def write(self, rows: Mapping[str, np.ndarray]) -> None:
        columns = {name: _as_json(array) for name, array in rows.items()}
        for values in zip(*columns.values(), strict=True):
            row = dict(zip(columns, values, strict=True))
            self._file.write(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n")

    def close(self) -> None:
        self._file.close()


_WRITERS: Final[Mapping[PredictionFormat, Any]] = {
    "tfrecord": _TFRecords,
    "npz": _Arrays,
    "jsonl": _Lines,
}


def open_writer(path: Path, format: PredictionFormat) -> Writer:
    """Returns a writer of a part."""
    writer: Writer = _WRITERS[format](path)
    return writer


def as_array(rows: tf.Tensor) -> np.ndarray:
    """Returns rows of an output as NumPy has them: bfloat16, which it lacks, as float32."""
    return (tf.cast(rows, tf.float32) if rows.dtype == tf.bfloat16 else rows).numpy()  # type: ignore[no-any-return]


def check_can_hold(outputs: Mapping[str, Any], format: PredictionFormat) -> None:
    """Raises BadInput if a format can't hold an output exactly.

    Args:
        outputs: a tensor, of any number of rows, by name.
        format: the format of the files.
    """
    for name, output in outputs.items():
        if not isinstance(output, tf.Tensor):
            raise BadInput(
                f"the model's output {name!r} is a {type(output).__name__}: predictions are "
                "written of dense tensors, so return one, as to_tensor() of a ragged tensor gives "
                "it"
            )
        if output.shape.rank == 0:
            raise BadInput(f"the model's output {name!r} is a single number: it needs rows")
        dtype = output.dtype
        is_number = dtype.is_floating or dtype.is_integer or dtype.is_bool
        holds = {
            "tfrecord": dtype == tf.string or (is_number and dtype not in (tf.float64, tf.uint64)),
            "npz": is_number or dtype.is_complex,
            "jsonl": is_number or dtype == tf.string,
        }
        if not holds[format]:
            others = " or ".join(each for each, fits in holds.items() if fits)
            raise BadInput(
                f"the model's output {name!r} is {dtype.name}, which {format} can't hold exactly: "
                + (f"take --format={others}" if others else "cast it in the model")
            )


def _flat_features(array: np.ndarray) -> list[tf.train.Feature]:
    """Returns a feature for each row."""
    if array.dtype.kind == "b":
        array = array.astype(np.int64)
    rows = array.reshape(len(array), math.prod(array.shape[1:])).tolist()
    if array.dtype.kind == "f":
        return [tf.train.Feature(float_list=tf.train.FloatList(value=row)) for row in rows]
    if array.dtype.kind == "O":
        return [tf.train.Feature(bytes_list=tf.train.BytesList(value=row)) for row in rows]
    return [tf.train.Feature(int64_list=tf.train.Int64List(value=row)) for row in rows]


def _as_json(array: np.ndarray) -> list[Any]:
    """Returns each row as JSON can hold it."""
    rows: list[Any] = array.tolist()
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        rows = _mapped(rows, _finite_or_word)
    return _mapped(rows, _text_or_base64) if array.dtype.kind == "O" else rows


def _mapped(value: Any, function: Any) -> Any:
    return (
        [_mapped(each, function) for each in value] if isinstance(value, list) else function(value)
    )


def _finite_or_word(value: float) -> float | str:
    """Returns a number that JSON has, or the name of one that it lacks, as ProtoBuf writes it."""
    if math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


def _text_or_base64(value: bytes) -> str | dict[str, str]:
    """Returns UTF-8 text, or other bytes as TF Serving writes them in JSON."""
    try:
        return value.decode()
    except UnicodeDecodeError:
        return {"b64": base64.b64encode(value).decode()}
