"""Every field of TF Serving's API, and what the embedded server does with it.

The decisions follow TF Serving's documentation and C++ source (not always that of 2.20);
`tests/processes/test_serving_recorded.py` compares with recorded answers of 2.20. Here, each
decision needs a call that sets the field.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tensorflow as tf
from google.protobuf import text_format
from google.protobuf.descriptor import Descriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from tensorflow.core.protobuf import meta_graph_pb2
from tensorflow_serving.apis import get_model_metadata_pb2
from tensorflow_serving.config import model_server_config_pb2

from serving.server.models import loading
from serving.server.models.model_config import ModelConfig
from serving.server.models.reloadable_registry import ReloadableRegistry
from serving.server.models.saved_model import SavedModel
from serving.server.models.servables import Servable
from tests.serving.api_calls import METADATA, OK, ROWS, Row
from tests.serving.api_fields import FIELDS, OPAQUE
from tests.serving.in_process import Call, caller, methods

RECORDED = Path(__file__).parent / "recorded"


def reachable() -> dict[str, Descriptor]:
    found: dict[str, Descriptor] = {}

    def walk(message: Descriptor) -> None:
        if message.full_name in found or message.full_name == OPAQUE:
            return
        found[message.full_name] = message
        for field in message.fields:
            if field.message_type is not None:
                walk(field.message_type)

    for _, method in methods().values():
        walk(method.input_type)
        walk(method.output_type)
    walk(get_model_metadata_pb2.SignatureDefMap.DESCRIPTOR)
    return {n: d for n, d in found.items() if not d.GetOptions().map_entry}


def test_every_field_of_every_message_has_a_decision():
    fields = {name: {f.name for f in message.fields} for name, message in reachable().items()}
    assert {name: set(decisions) for name, decisions in FIELDS.items()} == fields


class BrokenError(Exception):
    pass


def load(path: Path) -> SavedModel:
    if path.parent.name == "broken":
        raise tf.errors.NotFoundError(None, None, "broken on purpose")
    return loading.loader()(path)


# A SignatureDef with all fields, of which some can't be computed.
SIGNATURE = """
inputs { key: "a" value { name: "x:0" dtype: DT_FLOAT tensor_shape { unknown_rank: true } } }
inputs { key: "b" value {
  name: "x:0" dtype: DT_FLOAT tensor_shape { dim { size: -1 name: "d" } } } }
outputs { key: "y" value { name: "y:0" dtype: DT_FLOAT tensor_shape {} } }
method_name: "any method"
"""
OTHER_SIGNATURE = """
inputs { key: "sparse" value { dtype: DT_FLOAT coo_sparse {
  values_tensor_name: "x:0" indices_tensor_name: "x:0" dense_shape_tensor_name: "x:0" } } }
outputs { key: "ragged" value { composite_tensor {
  type_spec { type_spec_class: RAGGED_TENSOR_SPEC num_flat_components: 1 }
  components { name: "y:0" dtype: DT_FLOAT } } dtype: DT_FLOAT } }
method_name: "any method"
defaults { key: "sparse" value { dtype: DT_FLOAT float_val: 1 } }
"""


SIGNATURES = {
    name: text_format.Parse(text, meta_graph_pb2.SignatureDef())
    for name, text in (("serving_default", SIGNATURE), ("other", OTHER_SIGNATURE))
}


@pytest.fixture(scope="module")
def call(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Call]:
    base = tmp_path_factory.mktemp("models")
    v1 = tf.compat.v1
    with tf.Graph().as_default(), v1.Session() as session:
        x = v1.placeholder(tf.float32, name="x")
        tf.identity(x, "y")
        float8 = v1.placeholder(tf.as_dtype("float8_e5m2"), [], "float8")
        signature = v1.saved_model.predict_signature_def({"x": float8}, {"y": tf.identity(float8)})
        builder = v1.saved_model.Builder(str(base / "twice" / "1"))
        signatures = {**SIGNATURES, "float8": signature}
        builder.add_meta_graph_and_variables(session, ["serve"], signatures)
        builder.save()
    (base / "broken" / "1").mkdir(parents=True)
    servables = []

    def start(model: ModelConfig) -> Servable[Any]:
        servables.append(Servable(model.name, model.base_path, load, policy=model.policy))
        servables[-1].poll()
        return servables[-1]

    config = model_server_config_pb2.ModelServerConfig()
    for name in "kitchen", "half_plus", "twice", "broken":
        folder = (base if name in ("twice", "broken") else RECORDED / "models") / name
        model = config.model_config_list.config.add(name=name, base_path=str(folder))
        model.model_platform = "tensorflow"
    registry = ReloadableRegistry(config, start)
    yield caller(registry, lambda text: pytest.fail(text))
    for servable in servables:
        servable.drop()


def parse_request(row: Row) -> Message:
    text = row.request.replace("@", f'name: "kitchen" base_path: "{RECORDED}/models/kitchen"')
    return text_format.Parse(text, GetMessageClass(methods()[row.method][1].input_type)())


def parse_response(method: str, data: bytes) -> Message:
    return GetMessageClass(methods()[method][1].output_type).FromString(data)


def test_metadata_are_the_models_own(call: Call):
    code, _, data = call("GetModelMetadata", parse_request(METADATA).SerializeToString())
    assert code.name == OK
    response = parse_response("GetModelMetadata", data)
    assert isinstance(response, get_model_metadata_pb2.GetModelMetadataResponse)
    assert response.model_spec == text_format.Parse(
        'name: "twice" version { value: 1 }', type(response.model_spec)()
    )
    assert list(response.metadata) == ["signature_def"]
    signatures = get_model_metadata_pb2.SignatureDefMap()
    assert response.metadata["signature_def"].Unpack(signatures)
    for name, expected in SIGNATURES.items():
        assert signatures.signature_def[name] == expected


# In this order: the later ones follow a reload.
@pytest.mark.parametrize("row", ROWS, ids=range(len(ROWS)))
def test_calls_are_answered_by_the_decisions(call: Call, row: Row):
    code, text, data = call(row.method, parse_request(row).SerializeToString())
    assert code.name == row.code, text
    if row.code != OK:
        assert text.startswith(row.answer)
        return
    expected = GetMessageClass(methods()[row.method][1].output_type)()
    text_format.Parse(row.answer, expected)
    assert parse_response(row.method, data) == expected


def set_fields(message: Message) -> set[tuple[str, str]]:
    """The fields that a message and the messages in it set, with the names of their messages."""
    found = set()
    for field, value in message.ListFields():
        found.add((message.DESCRIPTOR.full_name, field.name))
        if field.message_type is None or field.message_type.full_name == OPAQUE:
            continue
        if field.message_type.GetOptions().map_entry:
            values = [value[key] for key in value]
            values = [each for each in values if isinstance(each, Message)]
        else:
            values = value if field.is_repeated else [value]
        for each in values:
            found |= set_fields(each)
    return found


def test_every_decision_has_a_call_that_shows_it():
    asked, answered = set(), set()
    for row in [*ROWS, METADATA]:
        asked |= set_fields(parse_request(row))
        if row.code == OK:
            output = GetMessageClass(methods()[row.method][1].output_type)()
            answered |= set_fields(text_format.Parse(row.answer, output))
    for exchange in json.loads((RECORDED / "exchanges.json").read_text()):
        method = exchange["method"].rpartition("/")[2]
        if method in methods() and exchange.get("request") and exchange["response"]:
            request = base64.b64decode(exchange["request"])
            asked |= set_fields(
                GetMessageClass(methods()[method][1].input_type).FromString(request)
            )
            answered |= set_fields(parse_response(method, base64.b64decode(exchange["response"])))
    metadata = get_model_metadata_pb2.SignatureDefMap(signature_def=SIGNATURES)
    answered |= set_fields(metadata)
    for name, decisions in FIELDS.items():
        for field, decision in decisions.items():
            for each in decision.split(", "):
                if each in ("honoured", "ignored", "refused"):
                    assert (name, field) in asked, f"no call sets {name}.{field}"
                else:
                    is_sent = (name, field) in answered
                    assert is_sent == (each == "sent"), f"{name}.{field} is {each}"
