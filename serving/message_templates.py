"""Templates of messages: for messages that differ from an earlier one in their numbers only.

A client mostly sends the same PredictRequest with other numbers, and gets the same PredictResponse
with other numbers. A template keeps the bytes of such a message without its numbers. If another
message has the same bytes at the same places, it has the same meaning, and its numbers are where
the template's were: nothing has to be parsed.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final, Generic, NamedTuple, TypeVar

import numpy as np
from google.protobuf.message import DecodeError

from serving import tensors
from serving.protos import serving_pb2
from serving.tensors import Array

# A field's tag is its number << 3, | 2 if a length follows, | 0 if its value is a varint.
INPUTS_TAG: Final = 0x12  # in a PredictRequest
OUTPUTS_TAG: Final = 0x0A  # in a PredictResponse
_KEY_TAG: Final = 0x0A  # in an entry of a map
_VALUE_TAG: Final = 0x12
_HEADER_TAGS: Final = (0x08, 0x12, 0x18)  # in a TensorProto: dtype, shape and version
_CONTENT_FIELDS: Final = {0x22: "tensor_content", 0x2A: "float_val", 0x32: "double_val"}
_CONTENT_TAGS: Final = {field: tag for tag, field in _CONTENT_FIELDS.items()}

_MAX_LENGTHS: Final = 1000
_MAX_TEMPLATES_OF_LENGTH: Final = 4
_MAX_TEMPLATE_BYTES: Final = 1 << 12  # mostly a few hundred; larger ones are not kept
_MAX_FIELDS: Final = 100  # of a message: a caller could send millions, and this loop is in Python
# After so many messages of one length without a template, that length is no longer tried.
_MAX_FAILURES: Final = 8

H = TypeVar("H")


class Template(Generic[H]):
    """The constant bytes of a message, and the locations of its tensors.

    Attributes:
        fixed: the message's bytes between the tensors, each with its offset.
        header: a value that was read from the message without its tensors.
    """

    def __init__(
        self,
        fixed: list[tuple[bytes, int]],
        header: H,
        locations: Iterable[tuple[str, tensors.Location]],
    ) -> None:
        self.header = header
        self.fixed = fixed
        self._locations = sorted(locations)

    def arrays(self, data: bytes) -> dict[str, Array]:
        """Returns the tensors of a message with this template as new arrays, sorted by name."""
        arrays = {}
        for name, location in self._locations:
            arrays[name] = tensors.read_at(data, location)
        return arrays


class _SameLength(NamedTuple, Generic[H]):
    templates: tuple[Template[H], ...] = ()
    failures: int = 0


_EMPTY: Final[_SameLength[Any]] = _SameLength()


class TemplateCache(Generic[H]):
    """The templates of earlier messages; safe to share between threads.

    Args:
        message_type: the type of message, with a map of tensors.
        map_tag: the tag of that map.
        read_header: returns the header of a template, from a message without its tensors. It may
            raise ValueError for a message that should not have a template.
    """

    def __init__(self, message_type: Any, map_tag: int, read_header: Callable[[Any], H]) -> None:
        self._message_type = message_type
        self._map_tag = map_tag
        self._read_header = read_header
        self._by_length: dict[int, _SameLength[H]] = {}

    def find(self, data: bytes) -> Template[H] | None:
        """Returns the template of a message; it is the same object for the same template.

        ``None`` if the message is not of this type, or has a tensor of strings, or one whose values
        are encoded or split in a way that numpy can't read in place.
        """
        same_length: _SameLength[H] = self._by_length.get(len(data), _EMPTY)
        for template in same_length.templates:
            for fixed, offset in template.fixed:
                if not data.startswith(fixed, offset):
                    break
            else:
                return template
        if same_length.failures >= _MAX_FAILURES:
            return None
        made = self._make(data)
        templates, failures = same_length
        if made is None:
            same_length = _SameLength(templates, failures + 1)
        else:
            same_length = _SameLength((made, *templates[: _MAX_TEMPLATES_OF_LENGTH - 1]), failures)
        if len(self._by_length) >= _MAX_LENGTHS:
            self._by_length.clear()
        self._by_length[len(data)] = same_length
        return made

    def _make(self, data: bytes) -> Template[H] | None:
        rest, locations = split_tensors(data, self._map_tag, 0)
        numbers_bytes = sum(map(_size_bytes, locations.values()))
        if len(data) - numbers_bytes > _MAX_TEMPLATE_BYTES:
            return None
        fixed, offset = [], 0
        for location in sorted(locations.values(), key=lambda location: location.start):
            fixed.append((data[offset : location.start], offset))
            offset = location.start + _size_bytes(location)
        fixed.append((data[offset:], offset))
        try:
            message = self._message_type.FromString(b"".join(data[at:end] for at, end in rest))
            is_inputs = self._map_tag == INPUTS_TAG
            unread = message.inputs if is_inputs else message.outputs
            if unread:
                return None
            return Template(fixed, self._read_header(message), locations.items())
        except (DecodeError, ValueError):
            return None


def split_tensors(
    data: bytes, map_tag: int, min_bytes: int
) -> tuple[list[tuple[int, int]], dict[str, tensors.Location]]:
    """Finds the tensors of a message without parsing their values.

    Args:
        data: the message.
        map_tag: the tag of its map of tensors.
        min_bytes: smaller tensors are left in the rest.

    Returns:
        Start and end of the spans that are the rest of the message, and the tensors' locations by
        name. Tensors that are not encoded as servers and clients usually do stay in the rest.
    """
    whole = [(0, len(data))]
    locations: dict[str, tensors.Location] = {}
    if len(data) < min_bytes:
        return whole, locations
    rest = []
    try:
        for tag, start, end, field_start in _fields(data, 0, len(data)):
            is_large = tag == map_tag and end - start >= min_bytes
            tensor = _locate_tensor(data, start, end) if is_large else None
            if tensor is None:
                rest.append((field_start, end))
            else:
                name, location = tensor
                locations[name] = location
    except (DecodeError, IndexError, ValueError):
        return whole, {}
    return rest, locations


@functools.lru_cache
def entry_prefix(
    map_tag: int, name: str, dtype: np.dtype[Any], shape: tuple[int, ...], field: str
) -> bytes:
    """Returns the bytes of a map's entry that precede the values of its tensor.

    Args:
        map_tag: the tag of the map.
        name: the entry's key.
        dtype: a numeric dtype.
        shape: not of an empty array.
        field: the field of the values: ``tensor_content``, ``float_val`` or ``double_val``.
    """
    content_bytes = math.prod(shape) * dtype.itemsize
    message = serving_pb2.TensorProto()
    tensors.write_header(np.broadcast_to(np.empty((), dtype), shape), message)
    start: bytes = (
        message.SerializeToString() + bytes([_CONTENT_TAGS[field]]) + tensors.varint(content_bytes)
    )
    key = bytes([_KEY_TAG]) + tensors.varint(len(name.encode())) + name.encode()
    value = bytes([_VALUE_TAG]) + tensors.varint(len(start) + content_bytes) + start
    entry_bytes = len(key) + len(value) + content_bytes
    return bytes([map_tag]) + tensors.varint(entry_bytes) + key + value


def join(prefixes: Iterable[bytes], arrays: Iterable[Any], suffix: bytes = b"") -> bytes:
    """Returns a message: each array's bytes after its prefix, then the suffix."""
    parts: list[Any] = []
    for prefix, array in zip(prefixes, arrays, strict=True):
        parts += prefix, array
    parts.append(suffix)
    return b"".join(parts)


def _locate_tensor(data: bytes, start: int, end: int) -> tuple[str, tensors.Location] | None:
    """Returns the name and location of the tensor in a map's entry; None if it is not in place."""
    entry = list(_fields(data, start, end))
    if [tag for tag, *_ in entry] != [_KEY_TAG, _VALUE_TAG]:
        return None
    (_, name_start, name_end, _), (_, value_start, value_end, _) = entry
    fields = list(_fields(data, value_start, value_end))
    header = [data[field:to] for tag, _, to, field in fields if tag in _HEADER_TAGS]
    contents = [
        (_CONTENT_FIELDS[tag], at, to) for tag, at, to, _ in fields if tag in _CONTENT_FIELDS
    ]
    if len(contents) != 1 or len(header) + 1 != len(fields):
        return None
    if sum(map(len, header)) > _MAX_TEMPLATE_BYTES:
        return None
    message = serving_pb2.TensorProto.FromString(b"".join(header))
    location = tensors.locate(message, *contents[0])
    if location is None:
        return None
    # Raises ValueError for more dimensions than numpy can have.
    np.ndarray(location.shape, location.dtype, data, location.start)
    return data[name_start:name_end].decode(), location


def _size_bytes(location: tensors.Location) -> int:
    return math.prod(location.shape) * location.dtype.itemsize


def _fields(data: bytes, at: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """Yields tag, start and end of the value, and start of the field, for each of a message.

    Raises:
        ValueError, IndexError: the bytes are no message, or have fields that no TensorProto has.
    """
    for _ in range(_MAX_FIELDS):
        if at == end:
            return
        field_start = at
        tag, at = _varint(data, at)
        if tag & 7 == 2:
            length, at = _varint(data, at)
            value_end = at + length
        elif tag & 7 == 0:
            _, value_end = _varint(data, at)
        else:
            raise ValueError("a number of fixed size")
        if value_end > end:
            raise ValueError("a field ends after its message")
        yield tag, at, value_end, field_start
        at = value_end
    raise ValueError("too many fields")


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """Returns the number at an offset, and the offset of the byte after it."""
    value = shift = 0
    while (byte := data[at]) > 0x7F:
        if shift > 63:
            raise ValueError("a number of more than 64 bits")
        value |= (byte & 0x7F) << shift
        shift += 7
        at += 1
    return value | byte << shift, at + 1
