"""Messages that differ from an earlier one in the numbers of their tensors alone.

A client mostly sends the same PredictRequest with other numbers, and gets the same PredictResponse
with other numbers. Then nothing has to be parsed: where an earlier message had everything but its
numbers, this one has it too, and its numbers are where the earlier one's were.
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

# How fields are tagged: number << 3 | 2 if they have a length, and | 0 if they are a varint.
INPUTS: Final = 0x12  # of a PredictRequest
OUTPUTS: Final = 0x0A  # of a PredictResponse
_KEY: Final = 0x0A  # of an entry of a map
_VALUE: Final = 0x12
_HEAD: Final = (0x08, 0x12, 0x18)  # of a TensorProto: its dtype, shape and version
_VALUES: Final = {0x22: "tensor_content", 0x2A: "float_val", 0x32: "double_val"}
_TAGS: Final = {field: tag for tag, field in _VALUES.items()}

_LENGTHS_KEPT: Final = 1000
_KEPT_OF_A_LENGTH: Final = 4
_KEPT_BYTES: Final = 1 << 12  # a layout is mostly a few hundred; larger ones are not kept
_MOST_FIELDS: Final = 100  # of a message: a caller could send millions, and this is Python
_FAILURES: Final = 8  # messages of a length without a layout, after which no more are looked at

N = TypeVar("N")


class Layout(Generic[N]):
    """What a message says beside its numbers, and where it says it.

    Attributes:
        fixed: all parts of the message that are no numbers, and where they are.
        note: what was noted of the message without its tensors.
    """

    def __init__(
        self, fixed: list[tuple[bytes, int]], note: N, places: Iterable[tuple[str, tensors.Place]]
    ) -> None:
        self.note = note
        self.fixed = fixed
        self._places = sorted(places)

    def arrays(self, data: bytes) -> dict[str, Array]:
        """The tensors of a message that is laid out so, sorted by name: new arrays."""
        found = {}
        for name, place in self._places:
            found[name] = tensors.read_at(data, place)
        return found


class _OfALength(NamedTuple, Generic[N]):
    layouts: tuple[Layout[N], ...] = ()
    failures: int = 0


_NONE: Final[_OfALength[Any]] = _OfALength()


class Layouts(Generic[N]):
    """The layouts of messages seen before; safe to share between threads.

    Args:
        message_type: the type of message: one that has a map of tensors.
        tag: of that map.
        note: what to keep of a message without its tensors, for all messages of its layout; it may
            raise ValueError for a message that is not to have one.
    """

    def __init__(self, message_type: Any, tag: int, note: Callable[[Any], N]) -> None:
        self._message_type = message_type
        self._tag = tag
        self._note = note
        self._known: dict[int, _OfALength[N]] = {}

    def find(self, data: bytes) -> Layout[N] | None:
        """The layout of a message; the same object for messages that are laid out alike.

        ``None`` if it is none of this type, or numbers of it lie in several places, are not as
        long as in memory, or are strings.
        """
        known: _OfALength[N] = self._known.get(len(data), _NONE)
        for layout in known.layouts:
            for part, at in layout.fixed:
                if not data.startswith(part, at):
                    break
            else:
                return layout
        if known.failures >= _FAILURES:
            return None
        found = self._lay_out(data)
        if found is None:
            known = _OfALength(known.layouts, known.failures + 1)
        else:
            known = _OfALength((found, *known.layouts[: _KEPT_OF_A_LENGTH - 1]), known.failures)
        if len(self._known) >= _LENGTHS_KEPT:
            self._known.clear()
        self._known[len(data)] = known
        return found

    def _lay_out(self, data: bytes) -> Layout[N] | None:
        rest, places = without_tensors(data, self._tag, 0)
        numbers_bytes = sum(map(_bytes_of, places.values()))
        if len(data) - numbers_bytes > _KEPT_BYTES:
            return None
        fixed, at = [], 0
        for place in sorted(places.values(), key=lambda place: place.start):
            fixed.append((data[at : place.start], at))
            at = place.start + _bytes_of(place)
        fixed.append((data[at:], at))
        try:
            message = self._message_type.FromString(b"".join(data[at:to] for at, to in rest))
            left = message.inputs if self._tag == INPUTS else message.outputs
            return None if left else Layout(fixed, self._note(message), places.items())
        except (DecodeError, ValueError):
            return None


def without_tensors(
    data: bytes, tag: int, least_bytes: int
) -> tuple[list[tuple[int, int]], dict[str, tensors.Place]]:
    """Where a message is but for its tensors of so many bytes, and where these are, by name.

    What is not written as servers and clients write it stays in, to be parsed as any message.
    """
    whole = [(0, len(data))]
    taken: dict[str, tensors.Place] = {}
    if len(data) < least_bytes:
        return whole, taken
    rest = []
    try:
        for found_tag, start, end, field in _fields(data, 0, len(data)):
            large = found_tag == tag and end - start >= least_bytes
            found = _tensor(data, start, end) if large else None
            if found is None:
                rest.append((field, end))
            else:
                taken[found[0]] = found[1]
    except (DecodeError, IndexError, ValueError):
        return whole, {}
    return rest, taken


@functools.lru_cache
def before(tag: int, name: str, dtype: np.dtype[Any], shape: tuple[int, ...], field: str) -> bytes:
    """What comes before a tensor's bytes: where it belongs, its name, its dtype and its shape.

    Args:
        tag: of the map that it is an entry of.
        name: its key there.
        dtype: of numbers.
        shape: not of an empty array.
        field: where its numbers go: ``tensor_content``, or the field of its floats.
    """
    content_bytes = math.prod(shape) * dtype.itemsize
    message = serving_pb2.TensorProto()
    tensors.describe(np.broadcast_to(np.empty((), dtype), shape), message)
    start: bytes = (
        message.SerializeToString() + bytes([_TAGS[field]]) + tensors.varint(content_bytes)
    )
    key = bytes([_KEY]) + tensors.varint(len(name.encode())) + name.encode()
    value = bytes([_VALUE]) + tensors.varint(len(start) + content_bytes) + start
    return bytes([tag]) + tensors.varint(len(key) + len(value) + content_bytes) + key + value


def joined(starts: Iterable[bytes], arrays: Iterable[Any], end: bytes = b"") -> bytes:
    """A message of what comes before each array, and their bytes."""
    parts: list[Any] = []
    for start, array in zip(starts, arrays, strict=True):
        parts += start, array
    parts.append(end)
    return b"".join(parts)


def _tensor(data: bytes, start: int, end: int) -> tuple[str, tensors.Place] | None:
    """The name and the tensor of an entry of a map, if all its values are in one place."""
    entry = list(_fields(data, start, end))
    if [tag for tag, *_ in entry] != [_KEY, _VALUE]:
        return None
    (_, name_at, name_to, _), (_, at, to, _) = entry
    fields = list(_fields(data, at, to))
    head = [data[field:to] for tag, _, to, field in fields if tag in _HEAD]
    values = [(_VALUES[tag], at, to) for tag, at, to, _ in fields if tag in _VALUES]
    if len(values) != 1 or len(head) + 1 != len(fields) or sum(map(len, head)) > _KEPT_BYTES:
        return None
    message = serving_pb2.TensorProto.FromString(b"".join(head))
    place = tensors.place(message, *values[0])
    if place is None:
        return None
    np.ndarray(place.shape, place.dtype, data, place.start)  # ValueError: too many dimensions
    return data[name_at:name_to].decode(), place


def _bytes_of(place: tensors.Place) -> int:
    return math.prod(place.shape) * place.dtype.itemsize


def _fields(data: bytes, at: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """Fields of a message: their tag, where their content is, and where they begin.

    Raises:
        ValueError, IndexError: it is no message, or has fields that no TensorProto has.
    """
    for _ in range(_MOST_FIELDS):
        if at == end:
            return
        field = at
        tag, at = _varint(data, at)
        if tag & 7 == 2:
            length, at = _varint(data, at)
            to = at + length
        elif tag & 7 == 0:
            _, to = _varint(data, at)
        else:
            raise ValueError("a number of fixed size")
        if to > end:
            raise ValueError("longer than what it is in")
        yield tag, at, to, field
        at = to
    raise ValueError("more fields than are worth it")


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while (byte := data[at]) > 0x7F:
        if shift > 63:
            raise ValueError("a number of more than 64 bits")
        value |= (byte & 0x7F) << shift
        shift += 7
        at += 1
    return value | byte << shift, at + 1
