"""Tensors between numpy and what travels, each number copied once.

A message that is set and then serialised copies its tensors three times. Here the small parts are
serialised as messages, and a tensor's bytes go between them in one join.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Mapping
from typing import Any, Final, NamedTuple

import numpy as np
from google.protobuf.message import DecodeError

from serving import tensors
from serving.client.errors import InvalidAnswer, InvalidInput
from serving.protos import serving_pb2
from serving.tensors import Array

# How fields are tagged: number << 3 | 2 if they have a length, and | 0 if they are a varint.
_INPUTS: Final = b"\x12"  # of a PredictRequest
_OUTPUTS: Final = 0x0A  # of a PredictResponse
_KEY: Final = b"\x0a"  # of an entry of a map
_VALUE: Final = b"\x12"
_CONTENT: Final = b"\x22"  # of a TensorProto
_HEAD: Final = (0x08, 0x12, 0x18)  # its dtype, shape and version
_VALUES: Final = {0x22: "tensor_content", 0x2A: "float_val", 0x32: "double_val"}
_PACKED: Final = b"\x0a"  # the numbers of a FloatList

_LARGE_BYTES: Final = 1 << 15  # from here on, finding a tensor's bytes is faster than parsing them
_KEPT: Final = 1000  # of what is remembered of each kind; a few hundred bytes each, as a rule
_LAYOUT_BYTES: Final = 1 << 12  # larger ones are not kept


def with_inputs(request: bytes, inputs: Mapping[str, Array]) -> bytes:
    """A PredictRequest as it travels.

    Args:
        request: everything but the inputs, as it travels.
        inputs: arrays by name.

    Raises:
        InvalidInput: an array can't be sent.
    """
    parts: list[Any] = [request]
    for name, array in inputs.items():
        try:
            content = tensors.content(array)
            if content is None:
                rest = serving_pb2.PredictRequest()
                tensors.write(array, rest.inputs[name])
                parts.append(rest.SerializeToString())
            else:
                parts += _before(name, array.dtype, array.shape, content.nbytes), content
        except ValueError as error:
            raise InvalidInput(f"input {name!r}: {error}") from None
    return b"".join(parts)


Look = tuple[tuple[str, np.dtype[Any], tuple[int, ...]], ...]


def look(inputs: Any) -> Look | None:
    """Element type and shape of each input, by name; ``None`` if they aren't plain arrays."""
    if type(inputs) is not dict:
        return None
    found = []
    for name, array in inputs.items():
        if type(array) is not np.ndarray or not array.flags.c_contiguous:
            return None
        found.append((name, array.dtype, array.shape))
    return tuple(found)


class Frames:
    """Requests without their arrays: callers mostly send the same again, with other numbers.

    Safe to share between threads.
    """

    def __init__(self) -> None:
        self._frames: dict[tuple[bytes, Look], tuple[object, list[bytes]]] = {}

    def fill(
        self, request: bytes, look: Look | None, inputs: Mapping[str, Array], checked_by: object
    ) -> bytes | None:
        """``with_inputs(request, inputs)``, if inputs that look so were checked by the same."""
        found = self._frames.get((request, look)) if look else None
        if found is None or found[0] is not checked_by:
            return None
        parts: list[Any] = []
        for start, array in zip(found[1], inputs.values(), strict=True):
            parts += start, array
        return b"".join(parts)

    def keep(
        self, request: bytes, look: Look | None, inputs: Mapping[str, Array], checked_by: object
    ) -> None:
        """For inputs that look so, were checked, and can be sent by ``with_inputs``."""
        if not look or not all(map(tensors.is_sent_as_it_is, inputs.values())):
            return
        starts = [
            _before(name, dtype, shape, math.prod(shape) * dtype.itemsize)
            for name, dtype, shape in look
        ]
        if len(self._frames) >= _KEPT:
            self._frames.clear()
        self._frames[request, look] = checked_by, [request + starts[0], *starts[1:]]


@functools.lru_cache
def _before(name: str, dtype: np.dtype[Any], shape: tuple[int, ...], content_bytes: int) -> bytes:
    """What comes before a tensor's bytes: it is an input, its name, its dtype and its shape."""
    message = serving_pb2.TensorProto()
    tensors.describe(np.broadcast_to(np.empty((), dtype), shape), message)
    start: bytes = message.SerializeToString() + _CONTENT + tensors.varint(content_bytes)
    key = _KEY + tensors.varint(len(name.encode())) + name.encode()
    value = _VALUE + tensors.varint(len(start) + content_bytes) + start
    return _INPUTS + tensors.varint(len(key) + len(value) + content_bytes) + key + value


def float_list(values: Array) -> bytes:
    """A FloatList as it travels, of an array of float32."""
    content = np.ascontiguousarray(values, dtype="<f4").tobytes()
    return _PACKED + tensors.varint(len(content)) + content


def parsed(answer_type: type[Any], answer: bytes) -> Any:
    """An answer as a message; raises InvalidAnswer if it is none."""
    try:
        return answer_type.FromString(answer)
    except DecodeError as error:
        name = answer_type.DESCRIPTOR.name
        raise InvalidAnswer(f"what came is no {name}: {error}") from None


class Predicted(NamedTuple):
    """A PredictResponse, its outputs as arrays by name."""

    model_spec: serving_pb2.ModelSpec
    outputs: dict[str, Array]


class _Layout(NamedTuple):
    """What an answer says beside its numbers, and where it says it."""

    fixed: list[tuple[bytes, int]]
    model_spec: serving_pb2.ModelSpec
    places: list[tuple[str, tensors.Place]]


# By an answer's length. Those that follow mostly differ in their numbers alone, and need no parsing
# then. None: numbers of such an answer lie in several places, or are no plain numbers.
_layouts: dict[int, _Layout | None] = {}


def predicted(answer: bytes) -> Predicted:
    """Reads a PredictResponse; raises InvalidAnswer if that or an output can't be read."""
    layout = _layouts.get(len(answer))
    if layout is not None:
        fixed, model_spec, in_order = layout
        for part, at in fixed:
            if not answer.startswith(part, at):
                break
        else:
            arrays = {}
            for name, place in in_order:
                arrays[name] = tensors.read_at(answer, place)
            return Predicted(model_spec, arrays)
    is_parsed = layout is None and len(answer) in _layouts
    rest, places = _without_tensors(answer, _LARGE_BYTES if is_parsed else 0)
    response = parsed(serving_pb2.PredictResponse, rest)
    arrays = {name: tensors.read_at(answer, place) for name, place in places.items()}
    for name in response.outputs:
        try:
            arrays[name] = tensors.read(response.outputs[name])
        except ValueError as error:
            raise InvalidAnswer(f"output {name!r}: {error}") from None
    if not is_parsed:
        _remember(answer, response, places)
    return Predicted(response.model_spec, dict(sorted(arrays.items())))


def _remember(answer: bytes, response: Any, places: Mapping[str, tensors.Place]) -> None:
    """Keeps the layout of an answer, if that is all that has to be known to read it."""
    if len(_layouts) >= _KEPT:
        _layouts.clear()
    _layouts[len(answer)] = None
    if response.outputs:
        return
    fixed, at = [], 0
    for place in sorted(places.values(), key=lambda place: place.start):
        fixed.append((answer[at : place.start], at))
        at = place.start + math.prod(place.shape) * place.dtype.itemsize
    fixed.append((answer[at:], at))
    if sum(len(part) for part, _ in fixed) <= _LAYOUT_BYTES:
        _layouts[len(answer)] = _Layout(fixed, response.model_spec, sorted(places.items()))


def _without_tensors(answer: bytes, least_bytes: int) -> tuple[bytes, dict[str, tensors.Place]]:
    """A PredictResponse without the tensors of so many bytes, and where these are, by name.

    What is not written as servers write it stays in, to be parsed as any message.
    """
    taken: dict[str, tensors.Place] = {}
    if len(answer) < least_bytes:
        return answer, taken
    rest = []
    try:
        for tag, start, end, field in _fields(answer, 0, len(answer)):
            large = tag == _OUTPUTS and end - start >= least_bytes
            found = _tensor(answer, start, end) if large else None
            if found is None:
                rest.append(answer[field:end])
            else:
                taken[found[0]] = found[1]
    except (DecodeError, IndexError, ValueError):
        return answer, {}
    return b"".join(rest), taken


def _tensor(answer: bytes, start: int, end: int) -> tuple[str, tensors.Place] | None:
    """The name and the tensor of an entry of the outputs, if all its values are in one place."""
    entry = list(_fields(answer, start, end))
    if [tag for tag, *_ in entry] != [_KEY[0], _VALUE[0]]:
        return None
    (_, name_at, name_to, _), (_, at, to, _) = entry
    fields = list(_fields(answer, at, to))
    head = [answer[field:to] for tag, _, to, field in fields if tag in _HEAD]
    values = [(_VALUES[tag], at, to) for tag, at, to, _ in fields if tag in _VALUES]
    if len(values) != 1 or len(head) + 1 != len(fields):
        return None
    message = serving_pb2.TensorProto.FromString(b"".join(head))
    place = tensors.place(message, *values[0])
    return None if place is None else (answer[name_at:name_to].decode(), place)


def _fields(data: bytes, at: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """Fields of a message: their tag, where their content is, and where they begin.

    Raises:
        ValueError, IndexError: it is no message, or has fields that no TensorProto has.
    """
    while at < end:
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


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while (byte := data[at]) > 0x7F:
        if shift > 63:
            raise ValueError("a number of more than 64 bits")
        value |= (byte & 0x7F) << shift
        shift += 7
        at += 1
    return value | byte << shift, at + 1
