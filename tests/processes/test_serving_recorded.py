"""The embedded server against what TF Serving answered: see tests/serving/recorded/README.md."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import grpc
import pytest
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    get_model_status_pb2,
    predict_pb2,
)

from tests.running import ROOT, Process

RECORDED = ROOT / "tests" / "serving" / "recorded"
SERVER = ["python", "-m", "serving.server", "--port=0", "--model_name=kitchen"]
RESPONSES = {
    "/tensorflow.serving.PredictionService/Predict": predict_pb2.PredictResponse,
    "/tensorflow.serving.PredictionService/GetModelMetadata": (
        get_model_metadata_pb2.GetModelMetadataResponse
    ),
    "/tensorflow.serving.ModelService/GetModelStatus": get_model_status_pb2.GetModelStatusResponse,
    "/tensorflow.serving.PredictionService/Nope": None,
}
EXCHANGES = json.loads((RECORDED / "exchanges.json").read_text())

# Which recorded calls are not made here, and why. Every other one is.
LEFT_OUT = {
    "methods that this server doesn't have yet": {
        exchange["name"] for exchange in EXCHANGES if exchange["method"] not in RESPONSES
    },
    "labels are given in a config file, which this server doesn't read yet": {
        "both stable",
        "metadata label",
        "stable after the swap",
        "canary still",
    },
    "what comes after the config was reloaded without the model, or with it again": {
        "status of a dropped model",
        "predict on a dropped model",
        "predict when back",
    },
    "TF Serving answered in time though the deadline was past: that is a race": {"deadline past"},
}
# These were asked of version 1 beside a version 2; here a server of version 1 alone answers.
VERSION_1 = {"both v1", "metadata v1", "status v1"}


@pytest.fixture(scope="module")
def channels(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, grpc.Channel]]:
    """Servers of kitchen (both versions there, so 2 is served) and of its version 1 alone."""
    first = tmp_path_factory.mktemp("first")
    (first / "1").symlink_to(RECORDED / "models" / "kitchen" / "1")
    bases = {"kitchen": RECORDED / "models" / "kitchen", "kitchen 1": first}
    with ExitStack() as stack:
        servers = {
            name: stack.enter_context(Process([*SERVER, f"--model_base_path={base}"]))
            for name, base in bases.items()
        }
        yield {
            name: stack.enter_context(
                grpc.insecure_channel(server.wait_for(r"ready on (\S+), model")[1])
            )
            for name, server in servers.items()
        }


def replayed() -> list[Any]:
    left_out = set().union(*LEFT_OUT.values())
    return [
        pytest.param(exchange, id=exchange["name"])
        for exchange in EXCHANGES
        if exchange["name"] not in left_out
    ]


@pytest.mark.parametrize("exchange", replayed())
def test_answers_as_tf_serving_did(channels: dict[str, grpc.Channel], exchange: dict[str, Any]):
    channel = channels["kitchen 1" if exchange["name"] in VERSION_1 else "kitchen"]
    call = channel.unary_unary(exchange["method"])
    request = base64.b64decode(exchange["request"])
    try:
        answer, code, details = call(request, timeout=20), "OK", ""
    except grpc.RpcError as error:
        answer, code, details = None, error.code().name, error.details()
    assert (code, answer is None) == (exchange["code"], exchange["response"] is None), details
    if answer is not None:
        message = RESPONSES[exchange["method"]]
        theirs = message.FromString(base64.b64decode(exchange["response"]))
        assert comparable(message.FromString(answer)) == comparable(theirs)
    elif not exchange.get("details_vary"):
        assert up_to_nodes(details) == up_to_nodes(exchange["details"])


def test_what_is_left_out_is_listed_once_and_exists():
    names = [name for group in LEFT_OUT.values() for name in group]
    assert len(names) == len(set(names))
    assert set(names) | VERSION_1 <= {exchange["name"] for exchange in EXCHANGES}
    assert len(replayed()) + len(names) == len(EXCHANGES) == 135


def comparable(message: Any) -> Any:
    """Maps have no order, so a packed map can't be compared by its bytes; and NaN is not NaN."""
    if isinstance(message, get_model_metadata_pb2.GetModelMetadataResponse):
        signatures = get_model_metadata_pb2.SignatureDefMap()
        assert message.metadata["signature_def"].Unpack(signatures)
        return message.model_spec, set(message.metadata), signatures
    return message.SerializeToString(deterministic=True)


def up_to_nodes(details: str) -> str:
    return details.partition("\n\t [[")[0]
