"""What the client sends, and what it makes of answers and failures; checks are tested apart."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from google.protobuf import text_format
from tensorflow_serving.apis import (
    classification_pb2,
    model_management_pb2,
    regression_pb2,
)
from tensorflow_serving.config import model_server_config_pb2

from serving import element_types, tensors
from serving.client import Client, errors, retries
from serving.client.results import VersionStatus
from serving.protos import serving_pb2
from tests.running import ROOT
from tests.serving.scripted_server import METHODS, Answer, Server, echo, refusal, signatures, states


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.stop()


@pytest.fixture
def client(server: Server) -> Iterator[Client]:
    with Client(server.target, check=False) as client:
        yield client


def test_predict_sends_arrays_as_they_are(server: Server, client: Client):
    seen = []

    def answer(data: bytes, context: grpc.ServicerContext) -> bytes:
        seen.append(serving_pb2.PredictRequest.FromString(data))
        return echo(data, context)

    server.answers["Predict"] = answer
    inputs = {"x": np.arange(6, dtype=np.int16).reshape(2, 3), "s": np.array([b"a", "b"], object)}
    outputs = client.predict("m", inputs, signature="other", version=7, output_filter=["x", "s"])
    assert outputs["x"].dtype == np.int16
    np.testing.assert_array_equal(outputs["x"], inputs["x"])
    assert outputs["s"].tolist() == [b"a", b"b"]
    assert server.calls == ["Predict"]  # nothing was left open: no question about metadata
    spec = seen[0].model_spec
    assert (spec.name, spec.signature_name, spec.version.value) == ("m", "other", 7)
    assert list(seen[0].output_filter) == ["x", "s"]

    client.predict("m", inputs, label="stable")
    assert seen[1].model_spec.version_label == "stable"
    assert seen[1].model_spec.signature_name == ""


def test_the_model_names_a_single_array_and_gives_lists_their_dtypes(
    server: Server, client: Client
):
    server.answers |= {"Predict": echo, "GetModelMetadata": signatures(pixels=1)}
    for _ in range(2):
        assert list(client.predict("m", np.ones((2, 3), np.float32))) == ["pixels"]
    assert server.calls == ["GetModelMetadata", "Predict", "Predict"]
    server.answers["GetModelMetadata"] = signatures(a=1, b=4)
    outputs = client.predict("lists", {"a": [[1, 2, 3]], "b": [255]})
    assert (outputs["a"].dtype, outputs["b"].dtype) == (np.float32, np.uint8)
    with pytest.raises(errors.InvalidInput, match="'b': a value is out of the range"):
        client.predict("lists", {"a": [[1, 2, 3]], "b": [256]})
    assert server.calls.count("Predict") == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(model=""), "no name"),
        (dict(version=1, label="stable"), "not both"),
        (dict(inputs={"x": np.zeros(1, "M8[s]")}), "'x': arrays of datetime64"),
        (dict(inputs={"x": [[1], [2, 3]]}), "'x'"),
        (dict(max_batch_size=0), "max_batch_size=0"),
        (dict(inputs=[1.0]), "2 inputs; give them by name: 'x', 'y'"),
        (dict(inputs=[1.0], signature="nope"), "no signature 'nope'; it has 'serving_default'"),
        (dict(timeout_s=0), "timeout_s=0"),
    ],
)
def test_what_can_not_be_sent_is_not_sent(
    server: Server, client: Client, arguments: dict[str, Any], message: str
):
    server.answers["GetModelMetadata"] = signatures(x=1, y=1)
    with pytest.raises(errors.InvalidInput, match=message) as caught:
        client.predict(**{"model": "m", "inputs": {"x": np.zeros(1)}, **arguments})
    assert isinstance(caught.value, ValueError)
    assert "Predict" not in server.calls


def test_a_closed_client_says_so(server: Server):
    client = Client(server.target)
    client.close()
    with pytest.raises(errors.InvalidInput, match="closed"):
        client.status("m")


EXCHANGES = {
    exchange["name"]: exchange
    for exchange in json.loads((Path(__file__).parent / "recorded/exchanges.json").read_text())
}


def recorded(name: str, request_type: type[Any]) -> Answer:
    """TF Serving's answer, to the request that it was given."""
    wanted = request_type.FromString(base64.b64decode(EXCHANGES[name]["request"]))

    def answer(data: bytes, context: grpc.ServicerContext) -> bytes:
        assert request_type.FromString(data) == wanted
        return base64.b64decode(EXCHANGES[name]["response"])

    return answer


def test_examples_go_out_as_tf_serving_got_them_and_its_answers_are_read(
    server: Server, client: Client
):
    def classify(name: str, *arguments: Any, **options: Any) -> Any:
        server.answers["Classify"] = recorded(name, classification_pb2.ClassificationRequest)
        return client.classify("half_plus", *arguments, signature="classify", **options)

    found = classify("Classify", {"x": [1.0, 5.0]})
    assert found.labels.tolist() == [["high", "low"], ["high", "low"]]
    assert found.scores.tolist() == [[2.5, -1.0], [4.5, -5.0]]
    assert found.scores.dtype == np.float32

    examples, context = [{}, {"x": np.float32(9)}], {"x": np.array([3.0])}
    with pytest.raises(errors.ServerError):  # the order of examples is the caller's
        classify("Classify context", examples[::-1], context=context)
    assert classify("Classify context", examples, context=context).scores.shape == (2, 2)

    server.answers["Regress"] = recorded("Regress one", regression_pb2.RegressionRequest)
    values = client.regress("half_plus", {"x": np.array([[1.0]])}, signature="regress")
    assert (values.dtype, values.tolist()) == (np.float32, [2.5])


CONFIG = """model_config_list { config {
    name: "m" base_path: "/models/m" model_platform: "tensorflow"
    model_version_policy { specific { versions: 6 versions: 7 } }
    version_labels { key: "stable" value: 6 }
} }"""


def test_reload_takes_a_text_or_a_message(server: Server, client: Client):
    seen = []

    def answer(data: bytes, context: grpc.ServicerContext) -> bytes:
        seen.append(model_management_pb2.ReloadConfigRequest.FromString(data).config)
        return b""

    server.answers["HandleReloadConfigRequest"] = answer
    theirs = text_format.Parse(CONFIG, model_server_config_pb2.ModelServerConfig())
    client.reload(CONFIG)
    client.reload(theirs)
    assert seen == [theirs, theirs]
    for wrong in ("model_config_list { nonsense: 1 }", 7, serving_pb2.ModelSpec()):
        with pytest.raises(errors.InvalidInput, match="ModelServerConfig"):
            client.reload(wrong)
    assert len(seen) == 2


def test_a_reload_is_made_once_and_its_status_is_read(server: Server, client: Client):
    server.answers["HandleReloadConfigRequest"] = refusal(grpc.StatusCode.UNAVAILABLE, "busy")
    with pytest.raises(errors.Unavailable, match=r"HandleReloadConfigRequest.*busy"):
        client.reload(CONFIG)
    assert server.calls == ["HandleReloadConfigRequest"]
    response = serving_pb2.ReloadConfigResponse()
    response.status.error_code = 9
    response.status.error_message = "version 9 is not currently available"
    server.answers["HandleReloadConfigRequest"] = lambda data, _: response.SerializeToString()
    with pytest.raises(errors.InvalidRequest, match="version 9 is not"):
        client.reload(CONFIG)


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (grpc.StatusCode.INVALID_ARGUMENT, errors.InvalidRequest),
        (grpc.StatusCode.FAILED_PRECONDITION, errors.InvalidRequest),
        (grpc.StatusCode.NOT_FOUND, errors.NotFound),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, errors.ResourceExhausted),
        (grpc.StatusCode.UNIMPLEMENTED, errors.Unimplemented),
        (grpc.StatusCode.UNAUTHENTICATED, errors.PermissionDenied),
        (grpc.StatusCode.INTERNAL, errors.ServerError),
        (grpc.StatusCode.DATA_LOSS, errors.ServerError),
    ],
)
def test_errors_say_what_was_asked_and_what_to_do(
    server: Server, client: Client, code: grpc.StatusCode, kind: type[errors.CallFailed]
):
    server.answers["Predict"] = refusal(code, "because of that.")
    with pytest.raises(errors.CallFailed) as caught:
        client.predict("m", {"x": np.zeros(1)})
    error = caught.value
    assert type(error) is kind
    assert (error.target, error.model, error.method) == (server.target, "m", "Predict")
    assert (error.code, error.details) == (code, "because of that.")
    for part in (server.target, "'m'", "Predict", code.name, "because of that", error.advice):
        assert part in str(error)
    assert server.calls == ["Predict"]  # not tried again


def test_trying_again_ends(server: Server, client: Client, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(retries, "FIRST_PAUSE_S", 0.001)
    server.answers["Predict"] = refusal(grpc.StatusCode.UNAVAILABLE, "queue is full")
    with pytest.raises(errors.Unavailable, match="queue is full"):
        client.predict("m", {"x": np.zeros(1)})
    assert server.calls == ["Predict"] * 5


def test_every_call_has_a_deadline(server: Server):
    left: dict[str, float] = {}

    def answer(data: bytes, context: grpc.ServicerContext) -> bytes:
        left[server.calls[-1]] = context.time_remaining()
        context.abort(grpc.StatusCode.NOT_FOUND, "")
        raise AssertionError

    server.answers = dict.fromkeys(METHODS, answer)
    with Client(server.target, timeout_s=7, check=False) as client:
        for call in (
            lambda: client.predict("m", {"x": np.zeros(1)}),
            lambda: client.classify("m", {"x": np.zeros(1)}, signature="c"),
            lambda: client.regress("m", {"x": np.zeros(1)}, signature="r"),
            lambda: client.metadata("m"),
            lambda: client.status("m"),
            lambda: client.reload(""),
        ):
            with pytest.raises(errors.NotFound):
                call()
    assert set(left) == set(METHODS)
    assert all(5 < seconds < 8 for seconds in left.values())


def test_an_answer_that_makes_no_sense_is_an_error(server: Server, client: Client):
    response = serving_pb2.PredictResponse()
    response.outputs["y"].dtype = serving_pb2.DT_FLOAT
    response.outputs["y"].tensor_shape.dim.add(size=2**40)
    server.answers["Predict"] = lambda data, context: response.SerializeToString()
    with pytest.raises(errors.InvalidAnswer, match="'y'"):
        client.predict("m", {"x": np.zeros(1)})
    server.answers["GetModelMetadata"] = lambda data, context: b""
    with pytest.raises(errors.InvalidAnswer, match="signature_def"):
        client.metadata("m")
    server.answers["GetModelStatus"] = lambda data, context: b"\xff\xff"
    with pytest.raises(errors.InvalidAnswer, match="no GetModelStatusResponse"):
        client.status("m")


def test_waiting_goes_through_every_stage_and_ends_when_loading_failed(
    server: Server, client: Client
):
    stages = [
        refusal(grpc.StatusCode.NOT_FOUND, "no such model yet"),
        states((1, "START", "")),
        states((1, "LOADING", "")),
        states((2, "LOADING", ""), (1, "AVAILABLE", "")),
        states((4, "END", "no variables")),
    ]
    server.answers["GetModelStatus"] = lambda data, context: stages[len(server.calls) - 1](
        data, context
    )
    assert client.wait_until_ready("m") == VersionStatus(1, "AVAILABLE", None)
    assert len(server.calls) == 4
    with pytest.raises(errors.NotReady, match=r"version 4 of model 'm'.*END \(no variables\)"):
        client.wait_until_ready("m", version=4)
    server.answers["GetModelStatus"] = states((4, "LOADING", ""))
    with pytest.raises(errors.NotReady, match=r"after 0\.3 s: version 4 is LOADING"):
        client.wait_until_ready("m", timeout_s=0.3)


def test_is_shared_between_threads(server: Server, client: Client):
    server.answers |= {"Predict": echo, "GetModelMetadata": signatures(x=1)}
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda n: client.predict("m", [float(n)])["x"][0], range(200)))
    assert answers == list(range(200))


def test_importing_the_client_takes_little_time(tmp_path: Path):
    program = (
        "import time; start = time.process_time(); import numpy, grpc; "
        "needed = time.process_time(); import serving.client, serving.client.command.cli; "
        "end = time.process_time(); "
        "print((end - start) / (needed - start))"
    )
    # Installed packages have byte code; so shall the sources here, whatever the environment says.
    env = os.environ | {"PYTHONPYCACHEPREFIX": str(tmp_path), "PYTHONDONTWRITEBYTECODE": ""}
    ratios: list[float] = []
    # 1.22 on a quiet machine, the command line included; the best of five, as others work here.
    while not ratios or (min(ratios) >= 1.3 and len(ratios) < 5):
        command = [sys.executable, "-c", program]
        ratios.append(float(subprocess.check_output(command, cwd=ROOT, env=env, text=True)))
    assert min(ratios) < 1.3


def test_tensors_read_themselves_without_ml_dtypes(monkeypatch: pytest.MonkeyPatch):
    element_types.numpy_dtype.cache_clear()
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    message = serving_pb2.TensorProto(dtype=serving_pb2.DT_BFLOAT16, half_val=[1])
    with pytest.raises(ValueError, match="pip install ml_dtypes"):
        tensors.read(message)
