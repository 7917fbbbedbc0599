"""Tensors between numpy and what travels, each number copied once.

A message that is set and then serialised copies its tensors three times. Here the small parts are
serialised as messages, and a tensor's bytes go between them in one join.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

import numpy as np
from google.protobuf.message import DecodeError

from serving import layouts, tensors
from serving.client.errors import InvalidAnswer, InvalidInput
from serving.protos import serving_pb2
from serving.tensors import Array

_PACKED: Final = b"\x0a"  # the numbers of a FloatList

_LARGE_BYTES: Final = 1 << 15  # from here on, finding a tensor's bytes is faster than parsing them
_KEPT: Final = 1000  # frames of requests; a few hundred bytes each, as a rule


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
                parts += _before(name, array.dtype, array.shape), content
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
        return layouts.joined(found[1], inputs.values())

    def keep(
        self, request: bytes, look: Look | None, inputs: Mapping[str, Array], checked_by: object
    ) -> None:
        """For inputs that look so, were checked, and can be sent by ``with_inputs``."""
        if not look or not all(map(tensors.is_sent_as_it_is, inputs.values())):
            return
        starts = [_before(*one) for one in look]
        if len(self._frames) >= _KEPT:
            self._frames.clear()
        self._frames[request, look] = checked_by, [request + starts[0], *starts[1:]]


def _before(name: str, dtype: np.dtype[Any], shape: tuple[int, ...]) -> bytes:
    return layouts.before(layouts.INPUTS, name, dtype, shape, "tensor_content")


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
    """A PredictResponse: the version that answered, and outputs as arrays by name."""

    version: int
    outputs: dict[str, Array]


_layouts: Final = layouts.Layouts(
    serving_pb2.PredictResponse, layouts.OUTPUTS, lambda response: response.model_spec.version.value
)


def predicted(answer: bytes) -> Predicted:
    """Reads a PredictResponse; raises InvalidAnswer if that or an output can't be read."""
    layout = _layouts.find(answer)
    if layout is not None:
        return Predicted(layout.note, layout.arrays(answer))
    spans, places = layouts.without_tensors(answer, layouts.OUTPUTS, _LARGE_BYTES)
    rest = b"".join(answer[at:to] for at, to in spans) if places else answer
    response = parsed(serving_pb2.PredictResponse, rest)
    arrays = {name: tensors.read_at(answer, place) for name, place in places.items()}
    for name in response.outputs:
        try:
            arrays[name] = tensors.read(response.outputs[name])
        except ValueError as error:
            raise InvalidAnswer(f"output {name!r}: {error}") from None
    return Predicted(response.model_spec.version.value, dict(sorted(arrays.items())))
