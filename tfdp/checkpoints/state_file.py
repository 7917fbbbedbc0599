"""The file with a checkpoint's arrays, ``state.safetensors``: mapped when read, never held whole.

The format is that of safetensors (https://huggingface.co/docs/safetensors): eight bytes with the
length of a header, little-endian; the header, JSON with the dtype, shape and place of each array;
then the arrays. The library needs copies of all arrays to write a file with its digest, and to read
one. Here arrays are written from where they are, and read one after the other.
"""

from __future__ import annotations

import concurrent.futures
import hashlib
import json
import mmap
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

import ml_dtypes
import numpy as np

PIECE_BYTES: Final = 16 << 20  # that are handled, or sent, at once

_DTYPES: Final[dict[str, np.dtype[Any]]] = {
    "BOOL": np.dtype(np.bool_),
    "U8": np.dtype(np.uint8),
    "I8": np.dtype(np.int8),
    "U16": np.dtype(np.uint16),
    "I16": np.dtype(np.int16),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "U32": np.dtype(np.uint32),
    "I32": np.dtype(np.int32),
    "F32": np.dtype(np.float32),
    "U64": np.dtype(np.uint64),
    "I64": np.dtype(np.int64),
    "F64": np.dtype(np.float64),
}
_NAMES: Final = {dtype: name for name, dtype in _DTYPES.items()}


class Place(NamedTuple):
    """Where an array is in a file.

    Args:
        dtype: its name in the format.
        shape: of the array.
        start: of its first byte, counted from the end of the header.
        stop: after its last byte.
    """

    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int

    @property
    def numpy_dtype(self) -> np.dtype[Any]:
        """The dtype for numpy."""
        return _DTYPES[self.dtype]

    def array(self, data: np.ndarray) -> np.ndarray:
        """Returns the array of ``data``, its bytes as uint8; they share memory."""
        return data.view(self.numpy_dtype).reshape(self.shape)


class Mapped(NamedTuple):
    """A file that is mapped into memory: pages are read when they are used.

    Args:
        data: all bytes of the file, uint8.
        header_bytes: their number before the first array.
        places: the place of each array by name, in the order of the file.
    """

    data: np.ndarray
    header_bytes: int
    places: dict[str, Place]

    def part(self, start: int, stop: int) -> np.ndarray:
        """Returns bytes of the arrays, counted from the end of the header."""
        return self.data[self.header_bytes + start : self.header_bytes + stop]

    @property
    def arrays_bytes(self) -> int:
        """The number of bytes of all arrays."""
        return len(self.data) - self.header_bytes

    def sha256(self) -> str:
        """Returns the digest of the whole file."""
        return _sha256([self.data])


def open_mapped(path: Path) -> Mapped:
    """Maps a file.

    Raises:
        OSError: if it can't be opened.
        ValueError: if it has another format.
    """
    with path.open("rb") as file:
        data = np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)
    header_bytes = 8 + int.from_bytes(data[:8].tobytes(), "little")
    if header_bytes > len(data):
        raise ValueError(f"{path} has {len(data)} bytes, and a header of {header_bytes}")
    try:
        header = json.loads(data[8:header_bytes].tobytes())
        places = {
            name: Place(each["dtype"], tuple(each["shape"]), *each["data_offsets"])
            for name, each in header.items()
            if name != "__metadata__"
        }
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} has no header of safetensors: {error}") from None
    in_order = sorted(places.items(), key=lambda each: each[1].start)
    return Mapped(data, header_bytes, dict(in_order))


def write(path: Path, arrays: Mapping[str, np.ndarray]) -> str:
    """Writes a file, and returns its sha256 when it is on the disk.

    Args:
        path: of the file.
        arrays: by name; they are not copied, and must not change meanwhile.

    Raises:
        OSError: if it can't be written.
        TypeError: if the format has no such dtype.
    """
    # Wider dtypes come first, so that every array is aligned.
    names = sorted(arrays, key=lambda name: (-arrays[name].dtype.itemsize, name))
    little_endian = {name: _in_little_endian(name, arrays[name]) for name in names}
    header: dict[str, object] = {}
    start = 0
    for name, array in little_endian.items():
        stop = start + array.nbytes
        dtype = _NAMES[array.dtype]
        header[name] = {"dtype": dtype, "shape": array.shape, "data_offsets": [start, stop]}
        start = stop
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text = text.ljust(-(-len(text) // 8) * 8)
    parts = [np.frombuffer(len(text).to_bytes(8, "little") + text, np.uint8)]
    parts += [array.reshape(-1).view(np.uint8) for array in little_endian.values()]
    with concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="sha256") as beside:
        digest = beside.submit(_sha256, parts)
        with path.open("wb") as file:
            for part in parts:
                file.write(part.data)
            file.flush()
            os.fsync(file.fileno())
    return digest.result()


def pieces(data: np.ndarray) -> Iterator[np.ndarray]:
    """Yields parts of a one-dimensional array, of ``PIECE_BYTES`` or less."""
    length = max(1, PIECE_BYTES // data.itemsize)
    for start in range(0, len(data), length):
        yield data[start : start + length]


def _sha256(parts: Iterable[np.ndarray]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        for piece in pieces(part):
            digest.update(piece.data)
    return digest.hexdigest()


def _in_little_endian(name: str, array: np.ndarray) -> np.ndarray:
    dtype = array.dtype.newbyteorder("<")
    if dtype not in _NAMES:
        raise TypeError(f"{name} has the dtype {array.dtype}")
    return np.ascontiguousarray(array, dtype).reshape(array.shape)
