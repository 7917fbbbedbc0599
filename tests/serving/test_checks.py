"""What the client refuses before it sends, and when it asks the model anew."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import grpc
import numpy as np
import pytest

from serving.client import Client, InvalidAnswer, InvalidInput, InvalidRequest
from serving.protos import serving_pb2
from tests.serving.scripted_server import Answer, Server, echo, refusal, signatures

F, S = serving_pb2.DT_FLOAT, serving_pb2.DT_STRING


@pytest.fixture(scope="module")
def shared() -> Iterator[Server]:
    server = Server()
    yield server
    server.stop()


@pytest.fixture
def server(shared: Server) -> Server:
    shared.answers = {"Predict": echo, "GetModelMetadata": signatures(x=F)}
    shared.calls.clear()
    return shared


@pytest.fixture
def client(server: Server) -> Iterator[Client]:
    with Client(server.target) as client:
        yield client


def of_version(version: int) -> Answer:
    def answer(data: bytes, context: grpc.ServicerContext) -> bytes:
        response = serving_pb2.PredictResponse.FromString(echo(data, context))
        response.model_spec.version.value = version
        return response.SerializeToString()

    return answer


X = np.zeros((2, 3), np.float32)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(inputs={}), "input 'x' is missing; signature 'serving_default' takes 'x'"),
        (dict(inputs={"x": X, "z": X}), "no input 'z'"),
        (dict(inputs={"x": X.astype(float)}), r"is float64.*takes float32.*astype\('float32'\)"),
        (dict(inputs={"x": X.astype("S")}), "is string, and the model takes float32"),
        (dict(inputs={"x": X.T}), r"\[3, 2\], and the model takes x: float32 \[any, 3\]: resh"),
        (dict(inputs={"x": X[0]}), r"\[3\].*by array\[None\] if it is one example"),
        (dict(inputs={"x": X}, output_filter=["x", "q"]), "no output 'q'.*gives 'x'"),
        (dict(inputs={"x": X}, signature="s"), "no signature 's'"),
    ],
)
def test_what_the_model_does_not_take_is_not_sent(
    server: Server, client: Client, arguments: dict[str, Any], message: str
):
    with pytest.raises(InvalidInput, match=message):
        client.predict("m", **arguments)
    assert "Predict" not in server.calls
    with Client(server.target, check=False) as unchecked:
        unchecked.predict("m", **arguments)
    assert server.calls[-1] == "Predict"


def test_what_the_model_takes_is_sent_and_it_is_asked_once(server: Server, client: Client):
    server.answers["GetModelMetadata"] = signatures(
        optional="o", x=F, any=(S, None), one=(F, []), o=(F, [1])
    )
    inputs = {"x": X, "any": np.array([[b"a"]], object), "one": np.float32(1)}
    for _ in range(3):
        client.predict("m", inputs, output_filter="x")
    assert server.calls == ["GetModelMetadata"] + ["Predict"] * 3


def test_a_right_call_is_not_refused_by_what_was_known_before(server: Server, client: Client):
    client.predict("m", {"x": X})
    server.answers["GetModelMetadata"] = signatures(version=2, y=F)
    assert list(client.predict("m", {"y": X})) == ["y"]
    with pytest.raises(InvalidInput, match="'x'"):
        client.predict("m", {"x": X})


def test_the_model_is_asked_again_when_another_version_answers(server: Server, client: Client):
    for version in (1, 2, 1, 2):  # as replicas in the middle of a roll-out do
        server.answers["Predict"] = of_version(version)
        server.answers["GetModelMetadata"] = signatures(version=version, x=F)
        client.predict("m", {"x": X})
        client.predict("m", {"x": X})
    assert server.calls.count("GetModelMetadata") == 2


def test_the_call_is_made_anew_when_the_server_refuses_for_a_new_signature(
    server: Server, client: Client
):
    client.predict("m", X)

    def answer(data: bytes, context: grpc.ServicerContext) -> bytes:
        if "new" not in serving_pb2.PredictRequest.FromString(data).inputs:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "no input old")
        return echo(data, context)

    server.answers |= {
        "Predict": answer,
        "GetModelMetadata": signatures(version=2, new=F),
    }
    assert list(client.predict("m", X)) == ["new"]


def test_a_refusal_is_final_when_nothing_has_changed(server: Server, client: Client):
    server.answers["Predict"] = refusal(grpc.StatusCode.INVALID_ARGUMENT, "bad op")
    with pytest.raises(InvalidRequest, match="bad op"):
        client.predict("m", X)
    assert server.calls == ["GetModelMetadata", "Predict"]
    server.answers["Predict"] = echo
    client.predict("m", X)
    server.answers["Predict"] = refusal(grpc.StatusCode.INVALID_ARGUMENT, "bad op")
    server.calls.clear()
    with pytest.raises(InvalidRequest, match="bad op"):
        client.predict("m", X)
    assert server.calls == ["Predict", "GetModelMetadata"]


def test_classify_and_regress_find_their_signature(server: Server, client: Client):
    seen: list[str] = []

    def answer(data: bytes, context: grpc.ServicerContext) -> bytes:
        request = serving_pb2.ClassificationRequest.FromString(data)
        seen.append(request.model_spec.signature_name)
        return b""

    server.answers |= {"Classify": answer, "Regress": answer}
    server.answers["GetModelMetadata"] = signatures(
        method="classify", key="labels", inputs=(S, [-1])
    )
    client.classify("m", {"a": [1.0]})
    with pytest.raises(InvalidInput, match="no examples"):
        client.classify("m", [])
    with pytest.raises(InvalidInput, match=r"0 signatures for 'regress'.*use predict"):
        client.regress("m", {"a": [1.0]})
    with pytest.raises(InvalidInput, match="is for 'classify', not for 'regress'"):
        client.regress("m", {"a": [1.0]}, signature="labels")
    assert seen == ["labels"]


def test_large_batches_are_split_and_joined(server: Server, client: Client):
    sizes: list[int] = []

    def answer(data: bytes, context: grpc.ServicerContext) -> bytes:
        inputs = serving_pb2.PredictRequest.FromString(data).inputs
        sizes.append(inputs["x"].tensor_shape.dim[0].size)
        return echo(data, context)

    server.answers |= {
        "Predict": answer,
        "GetModelMetadata": signatures(x=F, s=(S, [-1])),
    }
    inputs = {
        "x": np.arange(21, dtype=np.float32).reshape(7, 3),
        "s": np.array([b"%d" % n for n in range(7)], object),
    }
    outputs = client.predict("m", inputs, max_batch_size=3)
    assert sizes == [3, 3, 1]
    assert outputs["s"].tolist() == inputs["s"].tolist()
    np.testing.assert_array_equal(outputs["x"], inputs["x"])
    client.predict("m", inputs, max_batch_size=7)
    assert sizes[3:] == [7]
    with pytest.raises(InvalidInput, match=r"need the same number \('x' has 7, 's' has 6\)"):
        client.predict("m", {"x": inputs["x"], "s": inputs["s"][:6]}, max_batch_size=3)


def test_outputs_that_are_not_one_for_each_row_are_not_joined(server: Server, client: Client):
    response = serving_pb2.PredictResponse()
    response.outputs["mean"].CopyFrom(serving_pb2.TensorProto(dtype=F, float_val=[1, 2, 3]))
    response.outputs["mean"].tensor_shape.dim.add(size=3)
    server.answers["Predict"] = lambda data, context: response.SerializeToString()
    with pytest.raises(InvalidAnswer, match=r"'mean' of 2 batches.*joined to 4 rows"):
        client.predict("m", np.zeros((4, 3), np.float32), max_batch_size=3)


def test_each_of_many_models_is_asked_once(server: Server, client: Client):
    for _ in range(2):
        for number in range(40):
            client.predict(f"m{number}", np.zeros((1, 3), np.float32))
    assert server.calls.count("GetModelMetadata") == 40
