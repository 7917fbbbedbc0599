"""Calls of the embedded server that repeat earlier ones but for their numbers."""

from __future__ import annotations

import gc
import random
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2
from tensorflow_serving.apis import predict_pb2

from serving import message_templates, tensors
from serving.server.calls import predict, predict_fast_path, warmup
from serving.server.calls.grpc_status import status_of
from serving.server.calls.model_specs import model_name
from serving.server.errors import StatusError
from serving.server.models import loading
from serving.server.models.registry import ModelRegistry, Snapshot
from serving.server.models.servables import Servable

Answer = tuple[Any, ...]


def publish(base: Path, version: int) -> None:
    @tf.function(
        input_signature=[
            tf.TensorSpec([None, 2], tf.float32, name="x"),
            tf.TensorSpec([], tf.float64, name="by"),
        ]
    )
    def compute(x: tf.Tensor, by: tf.Tensor) -> dict[str, tf.Tensor]:
        return {
            "product": x * tf.cast(by, tf.float32) * float(version),
            "sum": tf.reduce_sum(tf.cast(x, tf.float64)) + by,
            "whole": tf.cast(x, tf.int32),
        }

    @tf.function(input_signature=[tf.TensorSpec([None], tf.float32, name="x")])
    def positive(x: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"y": tf.boolean_mask(x, x > 0)}

    signatures = {"serving_default": compute, "positive": positive}
    tf.saved_model.save(tf.Module(), str(base / str(version)), signatures=signatures)
    # What an exporter puts there if an input may be left out.
    path = base / str(version) / "saved_model.pb"
    proto = saved_model_pb2.SavedModel.FromString(path.read_bytes())
    definition = proto.meta_graphs[0].signature_def["serving_default"]
    definition.defaults["by"].CopyFrom(tf.make_tensor_proto(100.0, tf.float64))
    path.write_bytes(proto.SerializeToString())


@pytest.fixture
def served(tmp_path: Path) -> tuple[ModelRegistry, Servable[Any]]:
    publish(tmp_path, 1)
    servable = Servable("m", tmp_path, loading.loader(warmup.run))
    servable.poll()
    models = ModelRegistry({"m": servable})
    models._snapshot = Snapshot({"m": servable}, {"m": {"stable": 1}})
    return models, servable


def request(x: Any, by: float | None, *wanted: str, label: str = "", signature: str = "") -> bytes:
    message = predict_pb2.PredictRequest(output_filter=wanted)
    message.model_spec.name, message.model_spec.signature_name = "m", signature
    if label:
        message.model_spec.version_label = label
    if x is not None:
        message.inputs["x"].CopyFrom(tf.make_tensor_proto(np.array(x, np.float32)))
    if by is not None:
        tensors.write(np.array(by), message.inputs["by"], as_content=False)
    return bytes(message.SerializeToString())


def ask(models: ModelRegistry, data: bytes) -> predict_pb2.PredictResponse:
    name, call = predict_fast_path.read(data)
    assert name == "m"
    return predict_pb2.PredictResponse.FromString(
        predict_fast_path.predict(models, call, lambda: None)
    )


def outputs(response: predict_pb2.PredictResponse) -> dict[str, Any]:
    return {name: tf.make_ndarray(tensor).tolist() for name, tensor in response.outputs.items()}


def no_other_way(*arguments: Any) -> Any:
    raise AssertionError("it is parsed")


@pytest.mark.parametrize("wanted", [("product", "sum"), ("product",), ()])
def test_every_call_gets_the_answer_to_its_own_numbers(
    served: tuple[ModelRegistry, Servable[Any]],
    wanted: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch,
):
    models, _ = served
    for by in (2.0, 3.0, 0.5):
        x = [[by, 1.0], [by + 1, 7.0]]
        response = ask(models, request(x, by, *wanted))
        assert response.model_spec.name == "m" and response.model_spec.version.value == 1
        assert response.model_spec.signature_name == "serving_default"
        expected = {
            "product": (np.array(x) * by).tolist(),
            "sum": np.sum(x) + by,
            "whole": np.array(x, int).tolist(),
        }
        assert outputs(response) == {name: expected[name] for name in wanted or expected}
        # What was asked and answered once is known.
        monkeypatch.setattr(predict, "run", no_other_way)
    monkeypatch.undo()
    assert outputs(ask(models, request([[1, 2]], 2.0, *wanted)))["product"] == [[2, 4]]


def test_an_input_with_a_default_may_be_left_out_and_no_other(
    served: tuple[ModelRegistry, Servable[Any]],
):
    for _ in range(3):  # those that repeat the first one as well
        for by, factor in ((2.0, 2), (None, 100)):
            response = ask(served[0], request([[1, 2]], by, "product"))
            assert outputs(response) == {"product": [[factor, 2 * factor]]}
    extra = predict_pb2.PredictRequest.FromString(request([[1, 2]], 2.0))
    extra.inputs["z"].CopyFrom(extra.inputs["by"])
    for data in (request(None, None), request(None, 2.0), extra.SerializeToString()):
        with pytest.raises(StatusError) as caught:
            ask(served[0], data)
        assert caught.value.code is grpc.StatusCode.INVALID_ARGUMENT


def test_the_initializer_has_no_inputs(served: tuple[ModelRegistry, Servable[Any]]):
    with pytest.raises(StatusError, match="does not match signature: 2!=0"):
        ask(served[0], request([[1, 2]], 2.0, signature="__saved_model_init_op"))


def test_outputs_may_change_their_shapes(served: tuple[ModelRegistry, Servable[Any]]):
    for x in ([1.0, 2.0], [3.0, -1.0], [-1.0, -2.0], [-3.0, 7.0], [8.0, 9.0]):
        response = ask(served[0], request(x, None, signature="positive"))
        assert outputs(response) == {"y": [value for value in x if value > 0]}


def test_a_new_version_answers_calls_that_repeat_those_to_the_old_one(
    served: tuple[ModelRegistry, Servable[Any]],
):
    models, servable = served
    data = request([[1, 2]], 2.0, "product")
    for _ in range(2):
        assert outputs(ask(models, data)) == {"product": [[2, 4]]}
    version = servable.acquire(1)
    old_model = weakref.ref(version.model)
    assert old_model() in predict_fast_path._prepared_by_model
    servable.release(version)
    publish(servable.base_path, 2)
    servable.poll()
    for _ in range(2):
        response = ask(models, data)
        assert outputs(response) == {"product": [[4, 8]]}
        assert response.model_spec.version.value == 2
    gc.collect()
    assert old_model() is None  # prepared calls don't keep a model that was unloaded
    servable.drop()
    with pytest.raises(LookupError, match="Servable not found"):
        ask(models, data)


def result(answer: Callable[[], predict_pb2.PredictResponse]) -> Answer:
    try:
        return ("answered", answer())
    except Exception as error:
        return status_of(error)


def test_broken_requests_are_answered_as_if_parsed(served: tuple[ModelRegistry, Servable[Any]]):
    models, _ = served
    kinds: set[str] = set()
    for whole in (
        request([[1, 2]], 2.0),
        request([[1, 2]], 2.0, "product"),
        request(np.zeros((40, 2)), 1.0, "sum", label="stable"),
    ):
        luck = random.Random(0)
        places = [at for at in range(len(whole)) if at < 40 or at > len(whole) - 40]
        for _ in range(400):
            data = bytearray(whole)
            for _ in range(luck.randint(0, 3)):
                at = luck.choice(places)
                data[at] = luck.choice((0, 1, 0x0A, 0x12, 0x7F, 0xFF, luck.randrange(256)))
            broken = bytes(data[: luck.choice((None, None, None, luck.randrange(len(whole))))])

            def parsed(data: bytes = broken) -> predict_pb2.PredictResponse:
                message = predict_pb2.PredictRequest.FromString(data)
                model_name(message)
                return predict.predict(models, message, lambda: None)

            def asked(data: bytes = broken) -> predict_pb2.PredictResponse:
                _, call = predict_fast_path.read(data)
                answer = predict_fast_path.predict(models, call, lambda: None)
                return predict_pb2.PredictResponse.FromString(answer)

            expected, found = result(parsed), result(asked)
            # Texts that print sets name them in any order; NaN is not itself.
            assert str(found) == str(expected)
            kinds.add(str(found[0]))
    assert {"answered", "StatusCode.INVALID_ARGUMENT", "StatusCode.NOT_FOUND"} < kinds


def test_layouts_of_one_length_are_told_apart_and_their_number_is_limited(
    monkeypatch: pytest.MonkeyPatch,
):
    looked: list[str] = []
    tried: list[bytes] = []

    def split_tensors(data: bytes, *arguments: Any) -> Any:
        tried.append(data)
        return find_tensors(data, *arguments)

    find_tensors = message_templates.split_tensors
    monkeypatch.setattr(message_templates, "split_tensors", split_tensors)

    def note(message: Any) -> str:
        looked.append(message.model_spec.name)
        return looked[-1]

    def message(name: str, **inputs: Any) -> bytes:
        request = predict_pb2.PredictRequest()
        request.model_spec.name = name
        for key, array in inputs.items():
            tensors.write(np.asarray(array), request.inputs[key])
        return bytes(request.SerializeToString())

    found = message_templates.TemplateCache(
        predict_pb2.PredictRequest, message_templates.INPUTS_TAG, note
    )
    for number in range(3):
        for name in ("a", "b", "c"):
            template = found.find(message(name, x=np.full(3, number + 0.5)))
            assert template is not None and template.header == name
    assert looked == ["a", "b", "c"]

    for number in range(100):  # nothing to find, and soon nothing is looked for
        assert found.find(message(f"{number:02}", x=np.array([b"text"], object))) is None
    assert len(tried) == 3 + message_templates._MAX_FAILURES
    many = {f"{number}": [1.0] for number in range(101)}
    assert found.find(message("many", **many)) is None
    assert found.find(message("x" * 5000, x=[1.0])) is None  # too long to be kept
    millions = b"\x1a\x00" * 5_000_000
    began_s = time.process_time()
    assert found.find(millions) is None
    assert time.process_time() - began_s < 0.5  # to look at each would take some seconds
    assert looked == ["a", "b", "c"]
    for number in range(1, 2500):
        found.find(message("a", x=np.zeros(number)))
    assert len(found._by_length) <= message_templates._MAX_LENGTHS
