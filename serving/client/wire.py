"""Tensors between numpy and what travels, each number copied once.

A message that is set and then serialised copies its tensors three times. Here the small parts are
serialised as messages, and a tensor's bytes go between them in one join.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any, Final

import numpy as np
from google.protobuf.message import DecodeError

from serving import tensors
from serving.client.errors import InvalidAnswer, InvalidInput
from serving.protos import serving_pb2
from serving.tensors import Array

# Fields with a length, as they are tagged: number << 3 | 2.
_INPUTS: Final = b"\x12"  # of a PredictRequest
_KEY: Final = b"\x0a"  # of an entry of a map
_VALUE: Final = b"\x12"
_CONTENT: Final = b"\x22"  # of a TensorProto
_PACKED: Final = b"\x0a"  # the numbers of a FloatList


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
