"""The embedded server against what TF Serving answered: see tests/serving/recorded/README.md."""

from __future__ import annotations

import base64
import json
from typing import Any, NamedTuple

import grpc
import pytest
from google.protobuf import descriptor_pool, message_factory, text_format
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    model_management_pb2,
    model_service_pb2,  # noqa: F401 (its methods are looked up)
    prediction_service_pb2,  # noqa: F401
)

from tests.running import ROOT, Process

RECORDED = ROOT / "tests" / "serving" / "recorded"
EXCHANGES = json.loads((RECORDED / "exchanges.json").read_text())

# What the recorded server was started with.
CONFIG = """
model_config_list {
  config { name: "kitchen" base_path: "@/kitchen" model_platform: "tensorflow"
           model_version_policy { specific { versions: 1 versions: 2 } }
           version_labels { key: "stable" value: 1 } version_labels { key: "canary" value: 2 } }
  config { name: "half_plus" base_path: "@/half_plus" model_platform: "tensorflow" } }
"""
FLAGS = ["--allow_version_labels_for_unavailable_models", "--port=0"]

# TF Serving answered in time though the deadline was past: that is a race.
REPLAYED = [exchange for exchange in EXCHANGES if exchange["name"] != "deadline past"]


class Answer(NamedTuple):
    code: str
    details: str
    response: bytes | None


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Answer]:
    """This server's answers, by name. Calls that come after reloads depend on those before."""
    config = tmp_path_factory.mktemp("server") / "models.config"
    config.write_text(with_folder(CONFIG))
    command = ["python", "-m", "serving.server", f"--model_config_file={config}", *FLAGS]
    with Process(command) as server:
        target = server.wait_for(r"ready on (\S+), model")[1]
        with grpc.insecure_channel(target) as channel:
            return {exchange["name"]: ask(channel, exchange) for exchange in REPLAYED}


def ask(channel: grpc.Channel, exchange: dict[str, Any]) -> Answer:
    if "config" in exchange:
        reload = model_management_pb2.ReloadConfigRequest()
        text_format.Parse(with_folder(exchange["config"]), reload.config)
        request = reload.SerializeToString()
    else:
        request = base64.b64decode(exchange["request"])
    try:
        answer = channel.unary_unary(exchange["method"])(request, timeout=20)
    except grpc.RpcError as error:
        return Answer(error.code().name, error.details(), None)
    return Answer("OK", "", answer)


def with_folder(config: str) -> str:
    return config.replace("@", str(RECORDED / "models"))


def response_type(method: str) -> Any:
    full_name = method.removeprefix("/").replace("/", ".")
    found = descriptor_pool.Default().FindMethodByName(full_name)
    return message_factory.GetMessageClass(found.output_type)


@pytest.mark.parametrize("exchange", REPLAYED, ids=lambda exchange: exchange["name"])
def test_answers_as_tf_serving_did(answers: dict[str, Answer], exchange: dict[str, Any]):
    ours = answers[exchange["name"]]
    assert ours.code == exchange["code"], ours.details
    if ours.response is not None:
        message = response_type(exchange["method"])
        theirs = message.FromString(base64.b64decode(exchange["response"]))
        assert comparable(message.FromString(ours.response)) == comparable(theirs)
    elif not exchange.get("details_vary"):
        assert up_to_nodes(ours.details) == up_to_nodes(exchange["details"])
    elif exchange["method"].endswith(("/Classify", "/Regress")):
        # These texts print a SignatureDef, whose maps have no fixed order.
        details, theirs = up_to_nodes(ours.details), up_to_nodes(exchange["details"])
        assert details.partition("{")[0] == theirs.partition("{")[0]
        assert sorted(details) == sorted(theirs)


def test_all_but_one_are_replayed():
    assert len(REPLAYED) + 1 == len(EXCHANGES) == 135


def comparable(message: Any) -> Any:
    """Maps have no order, so a packed map can't be compared by its bytes; and NaN is not NaN."""
    if isinstance(message, get_model_metadata_pb2.GetModelMetadataResponse):
        signatures = get_model_metadata_pb2.SignatureDefMap()
        assert message.metadata["signature_def"].Unpack(signatures)
        return message.model_spec, set(message.metadata), signatures
    return message.SerializeToString(deterministic=True)


def up_to_nodes(details: str) -> str:
    return details.partition("\n\t [[")[0]
