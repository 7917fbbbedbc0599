"""numpy arrays to TensorProto messages and back, without a Python loop over numbers.

A message may be the client's own class or TensorFlow's: their fields are named alike. TensorFlow
is not needed, nor imported.

A tensor's values travel in one of two ways: as little-endian bytes in ``tensor_content``, or as
elements of the repeated field of their type (``float_val`` and its like), where a list that is too
short goes on with its last value, and an empty one means zeros.
"""

from __future__ import annotations

import functools
import math
import sys
from typing import Any, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

# A few bytes on the wire may claim a huge tensor by repeating one value: larger claims are refused.
_MAX_REPEATED_BYTES = 1 << 24
_FEW = 100  # numbers that are handed over as fast one by one
_DT_STRING = 7
_DT_BFLOAT16 = 14


# Each element type: its name, the repeated field that holds it, and that field's dtype in numpy.
_TYPES = {
    1: ("float32", "float_val", "float32"),
    2: ("float64", "double_val", "float64"),
    3: ("int32", "int_val", "int32"),
    4: ("uint8", "int_val", "int32"),
    5: ("int16", "int_val", "int32"),
    6: ("int8", "int_val", "int32"),
    _DT_STRING: ("string", "string_val", "object"),
    8: ("complex64", "scomplex_val", "float32"),
    9: ("int64", "int64_val", "int64"),
    10: ("bool", "bool_val", "bool"),
    _DT_BFLOAT16: ("bfloat16", "half_val", "int32"),
    17: ("uint16", "int_val", "int32"),
    18: ("complex128", "dcomplex_val", "float64"),
    19: ("float16", "half_val", "int32"),
    22: ("uint32", "uint32_val", "uint32"),
    23: ("uint64", "uint64_val", "uint64"),
}
# For each kind of dtype, as numpy abbreviates it: kinds whose values it can hold.
_KINDS_WITHIN = {"O": "O", "b": "b", "i": "iu", "u": "iu", "f": "biuf", "V": "biuf", "c": "biufc"}
_NUMBERS = {name: number for number, (name, _, _) in _TYPES.items()}
_NUMERIC = {  # the dtypes that numpy itself has
    number: np.dtype(name)
    for number, (name, _, _) in _TYPES.items()
    if number not in (_DT_STRING, _DT_BFLOAT16)
}
_TEXT = "SUTO"  # kinds of dtypes, as numpy abbreviates them, that hold strings


def dtype_name(number: int) -> str:
    """TensorFlow's name of the element type ``number``: ``float32``, ``string`` and so on."""
    return _TYPES[number][0] if number in _TYPES else f"dtype {number}"


@functools.cache
def numpy_dtype(name: str) -> np.dtype[Any]:
    """The numpy dtype of arrays of the element type ``name``; strings are objects.

    Raises:
        ValueError: there is no such type, or it is ``bfloat16`` and ml_dtypes is not installed.
    """
    if name not in _NUMBERS:
        raise ValueError(f"element type {name!r} is none of {', '.join(_NUMBERS)}")
    if name == "string":
        return np.dtype(object)
    if name == "bfloat16":
        try:
            import ml_dtypes
        except ImportError:
            message = "bfloat16 needs the package ml_dtypes: pip install ml_dtypes"
            raise ValueError(message) from None
        return cast("np.dtype[Any]", np.dtype(ml_dtypes.bfloat16))
    return np.dtype(name)


def element_type(array: Array) -> str:
    """TensorFlow's name of an array's element type; numpy's, if there is no counterpart."""
    return _element_type(array.dtype)


@functools.lru_cache
def _element_type(dtype: np.dtype[Any]) -> str:
    return "string" if dtype.kind in "SUTO" else dtype.name


def has_dtype(values: Any) -> bool:
    """Whether ``values`` knows its element type, as arrays of any library do and lists don't."""
    return hasattr(values, "__array__")


def as_array(values: Any, name: str | None = None) -> Array:
    """``values`` as an array; what has no dtype yet gets the element type ``name``, if given.

    Args:
        values: an array, which keeps its dtype, or numbers, strings, and lists of them.
        name: an element type, such as ``float32``; without it numpy decides.

    Raises:
        ValueError: the lists are ragged, or the values would be spoilt (1.5 as int32, 300 as
            uint8).
    """
    try:
        array = np.asarray(values)
    except UnicodeDecodeError:  # text beside bytes that are none
        array = np.asarray(values, dtype=object)
    if has_dtype(values):
        return array
    if array.dtype.kind in "SU":  # numpy's fixed-width strings would lose trailing NULs
        array = np.asarray(values, dtype=object)
    if name is None:
        return array
    wanted = numpy_dtype(name)
    if array.size and array.dtype.kind not in _KINDS_WITHIN[wanted.kind]:
        raise ValueError(f"{array.flat[0]!r} can't be sent as {name}")
    try:
        return np.array(values, dtype=wanted)
    except OverflowError as error:
        raise ValueError(f"a value is out of the range of {name}: {error}") from None


def write(array: Array, message: Any, *, as_content: bool = True) -> None:
    """Puts an array into an empty TensorProto.

    Args:
        array: any shape, scalars and empty ones included; strings as ``bytes`` or ``str`` (sent as
            UTF-8) in arrays of objects, or as numpy's own string dtypes.
        message: the TensorProto to fill.
        as_content: numbers as bytes in ``tensor_content``; otherwise in their repeated field, as
            TF Serving answers. Strings always go into their repeated field.

    Raises:
        ValueError: the dtype has no counterpart, or an element of an array of objects is neither
            ``bytes`` nor ``str``.
    """
    describe(array, message)
    if message.dtype == _DT_STRING:
        strings = [s.encode() if isinstance(s, str) else s for s in array.reshape(-1).tolist()]
        try:
            message.string_val.extend(strings)
        except TypeError as error:
            raise ValueError(f"an array of objects may hold bytes and str only: {error}") from None
        return
    array = _native(array)
    if as_content:
        message.tensor_content = _little_endian(array).tobytes()
    else:
        _, field, stored_as = _TYPES[message.dtype]
        if field == "half_val":  # the bits, as an integer
            array = array.view(np.uint16)
        values = array.reshape(-1)
        if stored_as in ("float32", "float64") and (values.size > _FEW or values.dtype.kind == "c"):
            _merge_packed(_little_endian(values).tobytes(), message, field)
        else:
            getattr(message, field).extend(values.tolist())


def describe(array: Array, message: Any) -> None:
    """Puts an array's element type and shape into an empty TensorProto.

    Raises:
        ValueError: the dtype has no counterpart.
    """
    number = _number_of(array.dtype)
    if number is None:
        raise ValueError(f"arrays of {array.dtype} can't be sent; what can: {', '.join(_NUMBERS)}")
    message.dtype = number
    message.tensor_shape.SetInParent()  # a scalar's shape is empty, yet it is there
    for size in array.shape:
        message.tensor_shape.dim.add(size=size)


@functools.lru_cache(1000)  # a dtype's name takes numpy 4 us
def _number_of(dtype: np.dtype[Any]) -> int | None:
    return _NUMBERS.get("string" if dtype.kind in _TEXT else dtype.name)


def content(array: Array) -> Array | None:
    """What ``tensor_content`` has to hold, as uint8: a view, where numpy can give one.

    ``None`` if that would not be taken for the values: strings, and nothing at all.
    """
    if _is_text(array) or not array.size:
        return None
    array = _native(array)
    return _little_endian(np.ascontiguousarray(array).reshape(-1)).view(np.uint8)


def is_sent_as_it_is(array: Array) -> bool:
    """Whether the memory of an array is what ``tensor_content`` has to hold."""
    return (
        array.dtype.isbuiltin == 1  # numpy's own, in this machine's byte order
        and array.flags.c_contiguous
        and sys.byteorder == "little"
        and array.size > 0
        and not _is_text(array)
    )


def plain_field(array: Array) -> str | None:
    """The repeated field that takes an array's memory as it is: of floats or doubles."""
    _, field, stored_as = _TYPES[_number_of(array.dtype) or _DT_STRING]
    plain = stored_as == array.dtype.name and stored_as in ("float32", "float64")
    return field if plain and is_sent_as_it_is(array) else None


def read(message: Any) -> Array:
    """The array that a TensorProto holds, as a new, writable array; strings as ``bytes`` objects.

    Raises:
        ValueError: the message is malformed or claims too much, or its element type is unknown.
    """
    number, shape = message.dtype, _shape(message.tensor_shape)
    content = message.tensor_content
    if content and number in _NUMERIC:
        return _little_endian(np.frombuffer(content, _NUMERIC[number]).reshape(shape)).copy()
    if number not in _TYPES:
        raise ValueError(f"element type {number} is unknown")
    size = math.prod(shape)
    name, field, stored_as = _TYPES[number]
    dtype = numpy_dtype(name)
    if content:
        if name == "string":
            return _objects(_split_strings(content, size)).reshape(shape)
        return _little_endian(np.frombuffer(content, dtype).reshape(shape)).copy()

    stored = getattr(message, field)
    if name == "string":
        values = _objects(stored)
    else:
        values = np.array(stored[:] if len(stored) < _FEW else stored, dtype=stored_as)
        if field == "half_val":
            values = values.astype(np.uint16).view(dtype)
        elif dtype.kind == "c":  # real and imaginary parts in turn
            values = values[: len(values) // 2 * 2].view(dtype)
        else:
            values = values.astype(dtype, copy=False)
    return _spread(values, size).reshape(shape)


class Place(NamedTuple):
    """Where an array lies in bytes: they are its values and nothing else, as ``read_at`` takes."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    start: int


def place(message: Any, field: str, start: int, end: int) -> Place | None:
    """The place of a TensorProto's values that were left where they came.

    Args:
        message: its element type and shape.
        field: the field that they are of: ``tensor_content``, or one of floats or doubles.
        start: their first byte.
        end: the byte after the last one.

    Returns:
        ``None`` if there is more to the array than these bytes: see ``read``.
    """
    name, own_field, stored_as = _TYPES.get(message.dtype, ("string", "", ""))
    if name == "string" or (field != "tensor_content" and (field, name) != (own_field, stored_as)):
        return None
    dtype, shape = numpy_dtype(name), _shape(message.tensor_shape)
    content_bytes = math.prod(shape) * dtype.itemsize
    return Place(dtype, shape, start) if 0 < content_bytes == end - start else None


def read_at(data: bytes, place: Place) -> Array:
    """The array at a place in ``data``: a new, writable one, copied once."""
    dtype, shape, start = place
    return _little_endian(np.ndarray(shape, dtype, data, start)).copy()


def _merge_packed(content: bytes, message: Any, field: str) -> None:
    """Fills a repeated field of floats or doubles by parsing what it is on the wire.

    That is a hundred times faster than handing over Python numbers: 0.05 ms for 150,000 of them.
    """
    number = message.DESCRIPTOR.fields_by_name[field].number
    message.MergeFromString(varint(number << 3 | 2) + varint(len(content)) + content)


def varint(value: int) -> bytes:
    """A number of 0 or more as protobuf writes lengths."""
    groups = bytearray()
    while value > 0x7F:
        groups.append(value & 0x7F | 0x80)
        value >>= 7
    groups.append(value)
    return bytes(groups)


def _is_text(array: Array) -> bool:
    return array.dtype.kind in _TEXT


def _shape(message: Any) -> tuple[int, ...]:
    shape = tuple([dim.size for dim in message.dim])
    if message.unknown_rank or (shape and min(shape) < 0):
        raise ValueError("the shape is not known in full")
    return shape


def _spread(values: Array, size: int) -> Array:
    """``values`` cut or, with its last value (zeros, if there is none), prolonged to ``size``."""
    if len(values) >= size:
        return values[:size]
    longest = len(values[-1]) if values.dtype == object and len(values) else 0
    if size * (values.itemsize + longest) > _MAX_REPEATED_BYTES:
        raise ValueError(f"{len(values)} values claim to be {size}")
    whole = np.empty(size, values.dtype)
    whole[: len(values)] = values
    nothing = b"" if values.dtype == object else 0
    whole[len(values) :] = values[-1] if len(values) else nothing
    return whole


def _native(array: Array) -> Array:
    """In this machine's byte order; nearly always the array itself."""
    return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))


def _little_endian(array: Array) -> Array:
    """From this machine's byte order to the wire's, or back; nearly always the array itself."""
    return array.byteswap() if sys.byteorder == "big" else array


def _objects(strings: Any) -> Array:
    array = np.empty(len(strings), dtype=object)
    array[:] = list(strings)
    return array


def _split_strings(content: bytes, size: int) -> list[bytes]:
    """Strings in ``tensor_content``: all their lengths, as varints, then all their bytes."""
    if size > len(content):
        raise ValueError(f"{len(content)} bytes are no {size} strings")
    lengths, at = [], 0
    for _ in range(size):
        length = shift = 0
        while True:
            if at == len(content) or shift > 63:
                raise ValueError("the lengths of the strings are malformed")
            byte = content[at]
            at += 1
            length |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                break
        lengths.append(length)
    if at + sum(lengths) != len(content):
        raise ValueError("the lengths of the strings don't add up")
    strings = []
    for length in lengths:
        strings.append(content[at : at + length])
        at += length
    return strings
