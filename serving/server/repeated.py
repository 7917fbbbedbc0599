"""PredictionService/Predict for calls that differ from earlier ones in their numbers alone.

Callers mostly repeat themselves. What was read and checked in one call (names, types, shapes, the
signature, the outputs wanted) holds for the next one that is laid out alike and answered by the
same version: then numbers are taken out of the request's bytes, and put between the answer's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from tensorflow_serving.apis import predict_pb2

from serving import layouts, tensors
from serving.layouts import Layout, Layouts
from serving.server import prediction
from serving.server.models import Asked, Models, TimeLeft, model_name
from serving.tensors import Array

if TYPE_CHECKING:
    from serving.server.savedmodel import SavedModel

_KEPT = 1000  # for each version of a model; a few hundred bytes each, as a rule

_Look = list[tuple[Any, tuple[int, ...]]]  # dtype and shape of each output


class Call(NamedTuple):
    """A call of Predict: its layout and bytes; or no layout, and the request."""

    layout: Layout[Asked] | None
    request: Any


def _note(request: Any) -> Asked:
    if not request.HasField("model_spec"):
        raise ValueError("such a request is refused, by all that it lacks")
    return Asked.by(request.model_spec)


_layouts = Layouts(predict_pb2.PredictRequest, layouts.INPUTS, _note)


def read(data: bytes) -> tuple[str, Call]:
    """The name of the model that a PredictRequest is for, and the call.

    Raises:
        DecodeError: it is none.
        Refused: it has no ModelSpec.
    """
    layout = _layouts.find(data)
    if layout is not None:
        return layout.note.name, Call(layout, data)
    request = predict_pb2.PredictRequest.FromString(data)
    return model_name(request), Call(None, request)


def predict(models: Models, call: Call, time_left_s: TimeLeft) -> bytes:
    """Answers a call; see ``prediction.predict``."""
    layout, request = call
    if layout is None:
        answer: bytes = prediction.predict(models, request, time_left_s).SerializeToString()
        return answer
    servable, version = models.take(layout.note)
    try:
        model = version.model
        assert model is not None
        repeated = model.repeated.get(layout)
        if repeated is None:
            return _first(model, version.number, layout, request, time_left_s)
        feeds = dict(zip(repeated.feeds, layout.arrays(request).values(), strict=True))
        return repeated.answer(model.run(feeds, repeated.fetches, time_left_s))
    finally:
        servable.give_back(version)


class Repeated:
    """What calls that are laid out alike have in common, when one version answers them.

    Attributes:
        feeds: names of the tensors to feed, in the order of the inputs' names.
        fetches: names of the tensors to fetch.
    """

    def __init__(self, model: SavedModel, request: Any, version: int) -> None:
        """Keeps what ``request`` asks of ``model``; raises Refused if that is wrong."""
        signature = prediction.signature_of(model, request)
        self.feeds = tuple(signature.inputs.values())
        self._names = list(prediction.wanted(signature, request.output_filter))
        self.fetches = [signature.outputs[name] for name in self._names]
        response = predict_pb2.PredictResponse()
        prediction.say_model(response.model_spec, request.model_spec, version)
        self._end: bytes = response.SerializeToString()
        # Of the last answer: how its outputs looked, and what came before each of them.
        self._last: tuple[_Look, list[bytes]] = [], []

    def answer(self, arrays: list[Array]) -> bytes:
        """A PredictResponse with these outputs, as it travels."""
        look: _Look = []
        for array in arrays:
            look.append((array.dtype, array.shape))
        last_look, starts = self._last
        if look == last_look:
            return layouts.joined(starts, arrays, self._end)
        response = predict_pb2.PredictResponse()
        starts = []
        for name, array in zip(self._names, arrays, strict=True):
            tensors.write(array, response.outputs[name], as_content=False)
            field = tensors.plain_field(array)
            if field is not None:
                starts.append(
                    layouts.before(layouts.OUTPUTS, name, array.dtype, array.shape, field)
                )
        if len(starts) == len(arrays):
            self._last = look, starts
        return bytes(response.SerializeToString()) + self._end


def _first(
    model: SavedModel, version: int, layout: Layout[Asked], data: bytes, time_left_s: TimeLeft
) -> bytes:
    """Answers a call as if there were no others, and keeps what they will have in common."""
    request = predict_pb2.PredictRequest.FromString(data)
    response = prediction.run(model, request, time_left_s)
    prediction.say_model(response.model_spec, request.model_spec, version)
    if len(request.inputs) == len(prediction.signature_of(model, request).inputs):
        if len(model.repeated) >= _KEPT:
            model.repeated.clear()
        model.repeated[layout] = Repeated(model, request, version)
    answer: bytes = response.SerializeToString()
    return answer
