"""The client's short ways past protobuf, held against protobuf."""

from __future__ import annotations

import random

import numpy as np
import pytest
from tensorflow.core.framework import tensor_pb2
from tensorflow_serving.apis import predict_pb2

from serving import tensors
from serving.client import InvalidAnswer, encoding
from serving.protos import serving_pb2
from tests.serving.test_tensors import NUMBERS, assert_same, numbers

LARGE = (3, 0x3000)


def plainly(answer: bytes) -> dict[str, np.ndarray] | None:
    """What an answer holds; ``None`` if it makes no sense."""
    try:
        outputs = predict_pb2.PredictResponse.FromString(answer).outputs
        return {name: tensors.read(tensor) for name, tensor in outputs.items()}
    except Exception:
        return None


@pytest.mark.parametrize("name", NUMBERS)
def test_large_tensors_of_every_kind_both_ways(name: str):
    array = numbers(name, LARGE)
    request = predict_pb2.PredictRequest.FromString(
        encoding.encode_predict_request(
            b"", {"x": array, "t": array.T, "one": array[0, 0], "none": array[:0]}
        )
    )
    assert_same(tensors.read(request.inputs["x"]), array)
    assert_same(tensors.read(request.inputs["t"]), np.ascontiguousarray(array.T))
    assert_same(tensors.read(request.inputs["one"]), array[0, 0])
    assert_same(tensors.read(request.inputs["none"]), array[:0])

    response = predict_pb2.PredictResponse()
    response.model_spec.version.value = 3
    tensors.write(array, response.outputs["field"], as_content=False)
    tensors.write(array, response.outputs["content"])
    tensors.write(np.array([b"a", b"b"], object), response.outputs["words"])
    found = encoding.decode_predict_response(response.SerializeToString())
    assert found.version == 3
    assert list(found.outputs) == ["content", "field", "words"]
    for key in ("field", "content"):
        assert_same(found.outputs[key], array)
        found.outputs[key][0] = 0  # it can be written to
    assert found.outputs["words"].tolist() == [b"a", b"b"]


def test_large_tensors_are_not_parsed(monkeypatch: pytest.MonkeyPatch):
    response = serving_pb2.PredictResponse()
    tensors.write(numbers("float32", LARGE), response.outputs["y"], as_content=False)
    monkeypatch.setattr(tensors, "read", None)
    assert (
        encoding.decode_predict_response(response.SerializeToString()).outputs["y"].shape == LARGE
    )


def test_what_is_written_in_another_way_is_read_all_the_same():
    half = np.arange(20_000, dtype=np.float32)
    twice = tensor_pb2.TensorProto(dtype=1)
    twice.tensor_shape.dim.add(size=40_000)
    chunk = tensor_pb2.TensorProto(float_val=half).SerializeToString()
    for tensor in (
        twice.SerializeToString() + chunk + chunk,
        chunk + twice.SerializeToString(),  # the last value goes on
        twice.SerializeToString()
        + chunk
        + tensor_pb2.TensorProto(float_val=[7]).SerializeToString(),
        twice.SerializeToString()
        + tensor_pb2.TensorProto(int_val=[7] * 40_000).SerializeToString(),
    ):
        response = predict_pb2.PredictResponse()
        response.outputs["y"].ParseFromString(tensor)
        answer = response.SerializeToString()
        assert_same(encoding.decode_predict_response(answer).outputs["y"], plainly(answer)["y"])  # type: ignore[index]
        # As it was, not as protobuf would write it.
        raw = b"\x0a\x01y\x12" + tensors.varint(len(tensor)) + tensor
        raw = b"\x0a" + tensors.varint(len(raw)) + raw
        assert_same(encoding.decode_predict_response(raw).outputs["y"], plainly(raw)["y"])  # type: ignore[index]


def test_broken_answers_are_read_as_protobuf_reads_them_or_refused():
    response = predict_pb2.PredictResponse()
    response.model_spec.name = "m"
    for name, size in (("a", 20_000), ("b", 3)):
        tensors.write(np.ones(size, np.float32), response.outputs[name], as_content=False)
    whole = response.SerializeToString()
    encoding.decode_predict_response(whole)  # from here on its layout is known
    luck = random.Random(0)
    interesting = [n for n in range(len(whole)) if n < 60 or n > len(whole) - 60]
    refused = 0
    for _ in range(600):
        data = bytearray(whole)
        for _ in range(luck.randint(1, 3)):
            data[luck.choice(interesting)] = luck.choice(
                (0, 1, 0x7F, 0x80, 0xFF, luck.randrange(256))
            )
        broken = bytes(data[: luck.choice((None, None, luck.choice(interesting)))])
        expected = plainly(broken)
        try:
            found = encoding.decode_predict_response(broken).outputs
        except InvalidAnswer:
            refused += 1
            assert expected is None
        else:
            assert expected is not None and found.keys() == expected.keys()
            for name, array in found.items():
                assert_same(array, expected[name])
    assert refused > 50
    with pytest.raises(InvalidAnswer):
        encoding.decode_predict_response(b"\xff" * 1_000_000)


def test_answers_that_are_laid_out_like_the_last_one_are_read_by_what_they_say():
    def answer(**changed: object) -> bytes:
        what = {"version": 3, "name": "y", "shape": (2, 6), "start": 0.0} | changed
        values = np.arange(12, dtype=np.float32).reshape(what["shape"]) + what["start"]  # type: ignore[call-overload,operator]
        response = predict_pb2.PredictResponse()
        response.model_spec.version.value = what["version"]  # type: ignore[assignment]
        tensors.write(values, response.outputs[what["name"]], as_content=False)
        tensors.write(-values, response.outputs["z"])
        return bytes(response.SerializeToString())

    first = encoding.decode_predict_response(answer())
    for changed in ({"start": 5.0}, {"version": 4}, {"name": "x"}, {"shape": (3, 4)}, {}):
        data = answer(**changed)
        assert len(data) == len(answer())
        found = encoding.decode_predict_response(data)
        assert found.version == changed.get("version", 3)
        expected = plainly(data)
        assert expected is not None and list(found.outputs) == sorted(expected)
        for name, array in found.outputs.items():
            assert_same(array, expected[name])
            array += 1  # nobody else has it
    assert first.outputs["y"].ravel().tolist() == list(range(12))


@pytest.mark.parametrize("name", NUMBERS)
def test_requests_are_filled_into_what_was_sent_before(name: str):
    templates, about = encoding.RequestTemplates(), object()
    inputs = {"x": numbers(name, (3, 4)), "two": numbers(name, (5,))}
    look = encoding.input_specs(inputs)
    assert templates.fill(b"head", look, inputs, about) is None
    templates.add(b"head", look, inputs, about)
    other = {key: np.ascontiguousarray(array[::-1]) for key, array in inputs.items()}
    filled = templates.fill(b"head", encoding.input_specs(other), other, about)
    assert filled == (
        None if name == "bfloat16" else encoding.encode_predict_request(b"head", other)
    )
    assert templates.fill(b"tail", look, inputs, about) is None
    assert templates.fill(b"head", look, inputs, object()) is None  # checked by something else
    assert templates.fill(b"head", encoding.input_specs({"x": inputs["x"]}), {}, about) is None
    swapped = {
        key: array.byteswap().view(array.dtype.newbyteorder()) for key, array in inputs.items()
    }
    if name not in ("bool", "uint8", "int8", "bfloat16"):
        assert templates.fill(b"head", encoding.input_specs(swapped), swapped, about) is None
        templates.add(b"head", encoding.input_specs(swapped), swapped, about)
        assert templates.fill(b"head", encoding.input_specs(swapped), swapped, about) is None


def test_what_is_more_than_plain_memory_is_never_filled_in():
    templates = encoding.RequestTemplates()
    for array in (
        np.ones((3, 4)).T,
        np.ones((3, 4))[:, ::2],
        np.array(["text"]),
        np.array([b"bytes"], object),
        np.empty((0, 4)),
        np.ma.masked_array([1.0], [True]),
        [1.0],
    ):
        inputs = {"x": array}
        templates.add(b"head", encoding.input_specs(inputs), inputs, None)  # type: ignore[arg-type]
        assert templates.fill(b"head", encoding.input_specs(inputs), inputs, None) is None  # type: ignore[arg-type]
    assert encoding.input_specs([1.0]) is None
