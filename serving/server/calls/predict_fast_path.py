"""A fast path for Predict calls that repeat an earlier call with other numbers.

Most callers send the same request with other numbers. The first call is parsed and checked (names,
dtypes, shapes, signature, outputs), and the result is kept. The next request with the same template
that the same version answers needs neither: its numbers are taken from the request's bytes, and the
results are put between the fixed bytes of the response.
"""

from __future__ import annotations

from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
from tensorflow_serving.apis import predict_pb2

from serving import message_templates, tensors
from serving.message_templates import Template, TemplateCache
from serving.server.calls import model_specs
from serving.server.calls import predict as predict_call
from serving.server.deadlines import TimeLeft
from serving.server.models.registry import ModelRegistry, VersionChoice
from serving.server.models.saved_model import SavedModel
from serving.tensors import Array

_MAX_PREPARED = 1000  # for each version of a model; mostly a few hundred bytes each

_OutputSpecs = list[tuple[np.dtype[Any], tuple[int, ...]]]  # dtype and shape of each output


class Call(NamedTuple):
    """A Predict call: with a template, the request's bytes; without, the parsed request."""

    template: Template[VersionChoice] | None
    request: Any


def _read_header(request: Any) -> VersionChoice:
    if not request.HasField("model_spec"):
        raise ValueError("no template: a request without ModelSpec is refused")
    return VersionChoice.of(request.model_spec)


_templates = TemplateCache(predict_pb2.PredictRequest, message_templates.INPUTS_TAG, _read_header)
# Prepared calls of each loaded model, which go when the model is unloaded.
_prepared_by_model: WeakKeyDictionary[SavedModel, dict[Template[VersionChoice], PreparedCall]] = (
    WeakKeyDictionary()
)


def read(data: bytes) -> tuple[str, Call]:
    """Returns the model's name in a PredictRequest, and the call.

    Raises:
        DecodeError: the bytes are no PredictRequest.
        StatusError: the request has no ModelSpec.
    """
    template = _templates.find(data)
    if template is not None:
        return template.header.name, Call(template, data)
    request = predict_pb2.PredictRequest.FromString(data)
    return model_specs.model_name(request), Call(None, request)


def predict(
    registry: ModelRegistry, call: Call, time_left_s: TimeLeft, as_content: bool = False
) -> bytes:
    """Answers PredictionService/Predict with a serialized PredictResponse.

    ``as_content``, as in ``predict.run``, has to be the same in all calls of a model.
    """
    template, request = call
    if template is None:
        response = predict_call.predict(registry, request, time_left_s, as_content)
        return bytes(response.SerializeToString())
    servable, version = registry.acquire(template.header)
    try:
        model = version.model
        assert model is not None
        prepared_calls = _prepared_by_model.get(model)
        prepared = prepared_calls and prepared_calls.get(template)
        if not prepared:
            return _predict_first(model, version.number, template, request, time_left_s, as_content)
        feeds = dict(zip(prepared.feeds, template.arrays(request).values(), strict=True))
        return prepared.respond(model.run(feeds, prepared.fetches, time_left_s))
    finally:
        servable.release(version)


class PreparedCall:
    """The constant part of all calls with one template that one version answers.

    Attributes:
        feeds: names of the tensors to feed, in the order of the inputs' names.
        fetches: names of the tensors to fetch.
    """

    def __init__(self, model: SavedModel, request: Any, version: int, as_content: bool) -> None:
        """Reads ``request``; raises StatusError if ``model`` can't answer it."""
        signature = predict_call.signature_of(model, request)
        self.feeds = tuple(signature.inputs.values())
        self._names = list(predict_call.output_names(signature, request.output_filter))
        self.fetches = [signature.outputs[name] for name in self._names]
        response = predict_pb2.PredictResponse()
        model_specs.fill(response.model_spec, request.model_spec, version)
        self._as_content = as_content
        self._suffix: bytes = response.SerializeToString()
        # Of the last response: dtypes and shapes of outputs, and the bytes before each of them.
        self._last: tuple[_OutputSpecs, list[bytes]] = [], []

    def respond(self, arrays: list[Array]) -> bytes:
        """Returns a serialized PredictResponse with these outputs."""
        specs: _OutputSpecs = []
        for array in arrays:
            specs.append((array.dtype, array.shape))
        last_specs, prefixes = self._last
        if specs == last_specs:
            return message_templates.join(prefixes, arrays, self._suffix)
        response = predict_pb2.PredictResponse()
        prefixes = []
        for name, array in zip(self._names, arrays, strict=True):
            tensors.write(array, response.outputs[name], as_content=self._as_content)
            field = tensors.raw_field(array, as_content=self._as_content)
            if field is not None:
                prefixes.append(
                    message_templates.entry_prefix(
                        message_templates.OUTPUTS_TAG, name, array.dtype, array.shape, field
                    )
                )
        if len(prefixes) == len(arrays):
            self._last = specs, prefixes
        return bytes(response.SerializeToString()) + self._suffix


def _predict_first(
    model: SavedModel,
    version: int,
    template: Template[VersionChoice],
    data: bytes,
    time_left_s: TimeLeft,
    as_content: bool,
) -> bytes:
    """Parses and answers the first call of a template, and prepares the next ones."""
    request = predict_pb2.PredictRequest.FromString(data)
    response = predict_call.run(model, request, time_left_s, as_content)
    model_specs.fill(response.model_spec, request.model_spec, version)
    if len(request.inputs) == len(predict_call.signature_of(model, request).inputs):
        prepared_calls = _prepared_by_model.setdefault(model, {})
        if len(prepared_calls) >= _MAX_PREPARED:
            prepared_calls.clear()
        prepared_calls[template] = PreparedCall(model, request, version, as_content)
    return bytes(response.SerializeToString())
