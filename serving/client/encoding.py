"""Encodes requests and decodes answers, and copies each number once.

A message that is filled and then serialized copies its tensors three times. Here only the small
parts are serialized as messages, and one join puts the tensors' bytes between them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

import numpy as np
from google.protobuf.message import DecodeError

from serving import message_templates, tensors
from serving.client.errors import InvalidAnswer, InvalidInput
from serving.protos import serving_pb2
from serving.tensors import Array

_PACKED_TAG: Final = b"\x0a"  # of the numbers in a FloatList

_LARGE_BYTES: Final = 1 << 15  # from here on, finding a tensor's bytes is faster than parsing them
_MAX_TEMPLATES: Final = 1000  # mostly a few hundred bytes each


def encode_predict_request(head: bytes, inputs: Mapping[str, Array]) -> bytes:
    """Returns a serialized PredictRequest.

    Args:
        head: the serialized request without inputs.
        inputs: arrays by name.

    Raises:
        InvalidInput: an array can't be sent.
    """
    parts: list[Any] = [head]
    for name, array in inputs.items():
        try:
            content = tensors.content(array)
            if content is None:
                rest = serving_pb2.PredictRequest()
                tensors.write(array, rest.inputs[name])
                parts.append(rest.SerializeToString())
            else:
                parts += _prefix(name, array.dtype, array.shape), content
        except ValueError as error:
            raise InvalidInput(f"input {name!r}: {error}") from None
    return b"".join(parts)


InputSpecs = tuple[tuple[str, np.dtype[Any], tuple[int, ...]], ...]


def input_specs(inputs: Any) -> InputSpecs | None:
    """Returns name, dtype and shape of each input; ``None`` if they aren't contiguous arrays."""
    if type(inputs) is not dict:
        return None
    specs = []
    for name, array in inputs.items():
        if type(array) is not np.ndarray or not array.flags.c_contiguous:
            return None
        specs.append((name, array.dtype, array.shape))
    return tuple(specs)


class RequestTemplates:
    """Requests without their numbers: most callers send the same request with other numbers.

    Safe to share between threads.
    """

    def __init__(self) -> None:
        self._templates: dict[tuple[bytes, InputSpecs], tuple[object, list[bytes]]] = {}

    def fill(
        self,
        head: bytes,
        specs: InputSpecs | None,
        inputs: Mapping[str, Array],
        metadata: object,
    ) -> bytes | None:
        """Returns ``encode_predict_request(head, inputs)`` from a template.

        ``None`` without a template for these specs, or if its inputs were checked against other
        metadata.
        """
        template = self._templates.get((head, specs)) if specs else None
        if template is None or template[0] is not metadata:
            return None
        return message_templates.join(template[1], inputs.values())

    def add(
        self,
        head: bytes,
        specs: InputSpecs | None,
        inputs: Mapping[str, Array],
        metadata: object,
    ) -> None:
        """Adds a template for inputs that were checked against ``metadata``, if it is possible."""
        if not specs or not all(map(tensors.is_sent_unchanged, inputs.values())):
            return
        prefixes = [_prefix(*spec) for spec in specs]
        if len(self._templates) >= _MAX_TEMPLATES:
            self._templates.clear()
        self._templates[head, specs] = metadata, [head + prefixes[0], *prefixes[1:]]


def _prefix(name: str, dtype: np.dtype[Any], shape: tuple[int, ...]) -> bytes:
    return message_templates.entry_prefix(
        message_templates.INPUTS_TAG, name, dtype, shape, "tensor_content"
    )


def encode_float_list(values: Array) -> bytes:
    """Returns a serialized FloatList with the numbers of an array."""
    content = np.ascontiguousarray(values, dtype="<f4").tobytes()
    return _PACKED_TAG + tensors.varint(len(content)) + content


def parse(answer_type: type[Any], answer: bytes) -> Any:
    """Returns an answer as a message; raises InvalidAnswer if it is not of this type."""
    try:
        return answer_type.FromString(answer)
    except DecodeError as error:
        name = answer_type.DESCRIPTOR.name
        raise InvalidAnswer(f"the answer is no {name}: {error}") from None


class PredictResult(NamedTuple):
    """A PredictResponse: the version that answered, and output arrays by name."""

    version: int
    outputs: dict[str, Array]


_templates: Final = message_templates.TemplateCache(
    serving_pb2.PredictResponse,
    message_templates.OUTPUTS_TAG,
    lambda response: response.model_spec.version.value,
)


def decode_predict_response(answer: bytes) -> PredictResult:
    """Reads a PredictResponse; raises InvalidAnswer if it or an output can't be read."""
    template = _templates.find(answer)
    if template is not None:
        return PredictResult(template.header, template.arrays(answer))
    spans, locations = message_templates.split_tensors(
        answer, message_templates.OUTPUTS_TAG, _LARGE_BYTES
    )
    rest = b"".join(answer[start:end] for start, end in spans) if locations else answer
    response = parse(serving_pb2.PredictResponse, rest)
    arrays = {name: tensors.read_at(answer, location) for name, location in locations.items()}
    for name in response.outputs:
        try:
            arrays[name] = tensors.read(response.outputs[name])
        except ValueError as error:
            raise InvalidAnswer(f"output {name!r}: {error}") from None
    return PredictResult(response.model_spec.version.value, dict(sorted(arrays.items())))
