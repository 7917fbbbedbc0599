"""Tensors between numpy and what travels, each number copied once.

A message that is set and then serialised copies its tensors three times. Here the small parts are
serialised as messages, and a tensor's bytes go between them in one join.
"""

from __future__ import annotations

import functools
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


def predicted(answer: bytes) -> Predicted:
    """Reads a PredictResponse; raises InvalidAnswer if that or an output can't be read."""
    rest, arrays = _without_large_tensors(answer)
    response = parsed(serving_pb2.PredictResponse, rest)
    for name in response.outputs:
        try:
            arrays[name] = tensors.read(response.outputs[name])
        except ValueError as error:
            raise InvalidAnswer(f"output {name!r}: {error}") from None
    return Predicted(response.model_spec, dict(sorted(arrays.items())))


def _without_large_tensors(answer: bytes) -> tuple[bytes, dict[str, Array]]:
    """A PredictResponse in which large tensors are taken out, and these, by name.

    What is not written as servers write it stays in, to be parsed as any message.
    """
    taken: dict[str, Array] = {}
    if len(answer) < _LARGE_BYTES:
        return answer, taken
    rest = []
    try:
        for tag, start, end, field in _fields(answer, 0, len(answer)):
            large = tag == _OUTPUTS and end - start >= _LARGE_BYTES
            found = _large_tensor(answer, start, end) if large else None
            if found is None:
                rest.append(answer[field:end])
            else:
                taken[found[0]] = found[1]
    except (DecodeError, IndexError, ValueError):
        return answer, {}
    return b"".join(rest), taken


def _large_tensor(answer: bytes, start: int, end: int) -> tuple[str, Array] | None:
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
    array = tensors.read_from(message, answer, *values[0])
    return None if array is None else (answer[name_at:name_to].decode(), array)


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
