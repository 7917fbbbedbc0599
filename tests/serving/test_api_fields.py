"""Every field of TF Serving's API, and what the embedded server does with it.

The decisions are those of TF Serving 2.20's C++ code; `tests/processes/test_serving_recorded.py`
compares with its recorded answers. Here, each decision needs a call that sets the field.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

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
from tests.serving.in_process import Call, caller, methods

RECORDED = Path(__file__).parent / "recorded"

# Of a request: "honoured"; "ignored", as in TF Serving; "refused". Of a response: "sent", "unsent".
# A field that is part of both has two decisions.
FIELDS = {
    "tensorflow.serving.ModelSpec": {
        "name": "honoured, sent",
        "version": "honoured, sent",
        "version_label": "honoured, unsent",
        "signature_name": "honoured, sent",
    },
    "google.protobuf.Int64Value": {"value": "honoured, sent"},
    "google.protobuf.Any": {"type_url": "refused, sent", "value": "refused, sent"},
    "tensorflow.serving.PredictRequest": {
        "model_spec": "honoured",
        "inputs": "honoured",
        "output_filter": "honoured",
        "predict_streamed_options": "ignored",
        "client_id": "ignored",
        "request_options": "ignored",
    },
    "tensorflow.serving.PredictStreamedOptions": {
        "request_state": "ignored",
        "split_dimensions": "ignored",
        "return_single_response": "ignored",
    },
    "tensorflow.serving.PredictRequest.RequestOptions": {
        "client_id": "ignored",
        "deterministic_mode": "ignored",
        "return_additional_arrays_from_prefill": "ignored",
        "return_stoptokens": "ignored",
        "return_all_stoptokens": "ignored",
        "max_cache_length": "ignored",
        "handshake": "ignored",
    },
    "tensorflow.serving.PredictRequest.RequestOptions.Handshake": {
        "estimated_payload_bytes": "ignored",
    },
    "tensorflow.serving.PredictResponse": {"model_spec": "sent", "outputs": "sent"},
    "tensorflow.TensorProto": {
        "dtype": "honoured, sent",
        "tensor_shape": "honoured, sent",
        "version_number": "ignored, unsent",
        "tensor_content": "honoured, unsent",  # without --enable_serialization_as_tensor_content
        "half_val": "honoured, sent",
        "float_val": "honoured, sent",
        "double_val": "honoured, sent",
        "int_val": "honoured, sent",
        "string_val": "honoured, sent",
        "scomplex_val": "honoured, sent",
        "int64_val": "honoured, sent",
        "bool_val": "honoured, sent",
        "dcomplex_val": "honoured, sent",
        "resource_handle_val": "refused, unsent",
        "variant_val": "refused, unsent",
        "uint32_val": "honoured, sent",
        "uint64_val": "honoured, sent",
        "float8_val": "honoured, sent",
    },
    "tensorflow.TensorShapeProto": {"dim": "honoured, sent", "unknown_rank": "ignored, sent"},
    "tensorflow.TensorShapeProto.Dim": {"size": "honoured, sent", "name": "ignored, sent"},
    "tensorflow.ResourceHandleProto": {
        "device": "refused",
        "container": "refused",
        "name": "refused",
        "hash_code": "refused",
        "maybe_type_name": "refused",
        "dtypes_and_shapes": "refused",
    },
    "tensorflow.ResourceHandleProto.DtypeAndShape": {"dtype": "refused", "shape": "refused"},
    "tensorflow.VariantTensorDataProto": {
        "type_name": "refused",
        "metadata": "refused",
        "tensors": "refused",
    },
    "tensorflow.serving.ClassificationRequest": {"model_spec": "honoured", "input": "honoured"},
    "tensorflow.serving.RegressionRequest": {"model_spec": "honoured", "input": "honoured"},
    "tensorflow.serving.MultiInferenceRequest": {"tasks": "honoured", "input": "honoured"},
    "tensorflow.serving.InferenceTask": {"model_spec": "honoured", "method_name": "honoured"},
    "tensorflow.serving.Input": {
        "example_list": "honoured",
        "example_list_with_context": "honoured",
    },
    "tensorflow.serving.ExampleList": {"examples": "honoured"},
    "tensorflow.serving.ExampleListWithContext": {"examples": "honoured", "context": "honoured"},
    "tensorflow.Example": {"features": "honoured"},
    "tensorflow.Features": {"feature": "honoured"},
    "tensorflow.Feature": {
        "bytes_list": "honoured",
        "float_list": "honoured",
        "int64_list": "honoured",
    },
    "tensorflow.BytesList": {"value": "honoured"},
    "tensorflow.FloatList": {"value": "honoured"},
    "tensorflow.Int64List": {"value": "honoured"},
    "tensorflow.serving.ClassificationResponse": {"model_spec": "sent", "result": "sent"},
    "tensorflow.serving.ClassificationResult": {"classifications": "sent"},
    "tensorflow.serving.Classifications": {"classes": "sent"},
    "tensorflow.serving.Class": {"label": "sent", "score": "sent"},
    "tensorflow.serving.RegressionResponse": {"model_spec": "sent", "result": "sent"},
    "tensorflow.serving.RegressionResult": {"regressions": "sent"},
    "tensorflow.serving.Regression": {"value": "sent"},
    "tensorflow.serving.MultiInferenceResponse": {"results": "sent"},
    "tensorflow.serving.InferenceResult": {
        "model_spec": "sent",
        "classification_result": "sent",
        "regression_result": "sent",
    },
    "tensorflow.serving.GetModelMetadataRequest": {
        "model_spec": "honoured",
        "metadata_field": "honoured",
    },
    "tensorflow.serving.GetModelMetadataResponse": {"model_spec": "sent", "metadata": "sent"},
    # Metadata is the model's own, field by field.
    "tensorflow.serving.SignatureDefMap": {"signature_def": "sent"},
    "tensorflow.SignatureDef": {
        "inputs": "sent",
        "outputs": "sent",
        "method_name": "sent",
        "defaults": "sent",
    },
    "tensorflow.TensorInfo": {
        "name": "sent",
        "coo_sparse": "sent",
        "composite_tensor": "sent",
        "dtype": "sent",
        "tensor_shape": "sent",
    },
    "tensorflow.TensorInfo.CooSparse": {
        "values_tensor_name": "sent",
        "indices_tensor_name": "sent",
        "dense_shape_tensor_name": "sent",
    },
    "tensorflow.TensorInfo.CompositeTensor": {"type_spec": "sent", "components": "sent"},
    "tensorflow.serving.GetModelStatusRequest": {"model_spec": "honoured"},
    "tensorflow.serving.GetModelStatusResponse": {"model_version_status": "sent"},
    "tensorflow.serving.ModelVersionStatus": {"version": "sent", "state": "sent", "status": "sent"},
    "tensorflow.serving.StatusProto": {"error_code": "sent", "error_message": "sent"},
    "tensorflow.serving.ReloadConfigRequest": {"config": "honoured", "metric_names": "ignored"},
    "tensorflow.serving.ReloadConfigResponse": {"status": "sent", "metric": "unsent"},
    "tensorflow.serving.Metric": {"name": "unsent", "int64_value_increase": "unsent"},
    "tensorflow.serving.ModelServerConfig": {
        "model_config_list": "honoured",
        "custom_model_config": "refused",
    },
    "tensorflow.serving.ModelConfigList": {"config": "honoured"},
    "tensorflow.serving.ModelConfig": {
        "name": "honoured",
        "base_path": "honoured",
        "model_type": "honoured",
        "model_platform": "honoured",
        "model_version_policy": "honoured",
        "version_labels": "honoured",
        "logging_config": "refused",
    },
    "tensorflow.serving.FileSystemStoragePathSourceConfig.ServableVersionPolicy": {
        "latest": "honoured",
        "all": "honoured",
        "specific": "honoured",
    },
    "tensorflow.serving.FileSystemStoragePathSourceConfig.ServableVersionPolicy.Latest": {
        "num_versions": "honoured",
    },
    "tensorflow.serving.FileSystemStoragePathSourceConfig.ServableVersionPolicy.All": {},
    "tensorflow.serving.FileSystemStoragePathSourceConfig.ServableVersionPolicy.Specific": {
        "versions": "honoured",
    },
    "tensorflow.serving.LoggingConfig": {
        "log_collector_config": "refused",
        "sampling_config": "refused",
        "custom_logging_config": "refused",
    },
    "tensorflow.serving.LogCollectorConfig": {"type": "refused", "filename_prefix": "refused"},
    "tensorflow.serving.SamplingConfig": {
        "sampling_rate": "refused",
        "per_task_sampling_configs": "refused",
        "attributes": "refused",
    },
    "tensorflow.serving.PerTaskSamplingConfig": {
        "dc": "refused",
        "task_index": "refused",
        "sampling_rate": "refused",
    },
}
# The type of a composite tensor is opaque to a server: what is in it is not listed.
OPAQUE = "tensorflow.TypeSpecProto"


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


class Row(NamedTuple):
    """A call: the request's text and the code and text, or the response's text, that it gets."""

    method: str
    request: str
    code: str
    answer: str


X = 'key: "x" value { dtype: DT_FLOAT float_val: 3 }'
Y = 'key: "y" value { dtype: DT_FLOAT float_val: 2 }'
BOTH = f'model_spec {{ name: "kitchen" }} inputs {{ {X} }} inputs {{ {Y} }}'
SPEC = 'model_spec { name: "kitchen" version { value: 2 } signature_name: "serving_default" }'
FLOAT = "dtype: DT_FLOAT tensor_shape {} float_val"
SUM = f'outputs {{ key: "sum" value {{ {FLOAT}: 50 }} }}'  # of version 2: 10 (x + y)
PRODUCT = f'outputs {{ key: "product" value {{ {FLOAT}: 6 }} }}'
OK, INVALID = "OK", "INVALID_ARGUMENT"
PARSING = "tensor parsing error: x"


def echo(number: int, values: str) -> str:
    """A tensor, sent to a signature that takes floats."""
    return (
        'model_spec { name: "kitchen" signature_name: "echo_float" } '
        f'inputs {{ key: "x" value {{ dtype: {number} {values} }} }}'
    )


EXAMPLES = 'input { example_list { examples { features { feature { key: "x" value { %s } } } } } }'
TEN = EXAMPLES % "float_list { value: 10 }"
HALF_SPEC = 'model_spec { name: "half_plus" version { value: 5 } signature_name: "regress" }'


def task(method: str, signature: str, name: str = "half_plus") -> str:
    spec = f'model_spec {{ name: "{name}" signature_name: "{signature}" }}'
    return f'tasks {{ {spec} method_name: "{method}" }} '


REGRESS, CLASSIFY = "tensorflow/serving/regress", "tensorflow/serving/classify"


def config(fields: str) -> str:
    """A ReloadConfigRequest that keeps the model kitchen alone."""
    model = f"config {{ @ model_type: TENSORFLOW {fields} }}"
    return f"config {{ model_config_list {{ {model} }} }} "


PREDICT, STATUS, RELOAD = "Predict", "GetModelStatus", "HandleReloadConfigRequest"
ROWS = [
    Row(PREDICT, BOTH, OK, f"{PRODUCT} {SUM} {SPEC}"),
    Row(
        PREDICT,
        f"{BOTH} client_id: 'me' predict_streamed_options {{ request_state: SPLIT "
        "split_dimensions { key: 'x' value: 1 } return_single_response: true } "
        "request_options { client_id: 'me' deterministic_mode: FIXED_DECODER_SLOT "
        "return_additional_arrays_from_prefill: true return_stoptokens: 1 "
        "return_all_stoptokens: true max_cache_length: 3 "
        "handshake { estimated_payload_bytes: 1 } }",
        OK,
        f"{PRODUCT} {SUM} {SPEC}",
    ),
    Row(PREDICT, f'{BOTH} output_filter: "sum"', OK, f"{SUM} {SPEC}"),
    Row(
        PREDICT,
        BOTH.replace(
            "DT_FLOAT",
            'DT_FLOAT version_number: 7 tensor_shape { dim { name: "d" size: 1 '
            "} unknown_rank: true }",
        ),
        OK,
        f"{PRODUCT} {SUM} {SPEC}".replace("tensor_shape {}", "tensor_shape { dim { size: 1 } }"),
    ),
    Row(PREDICT, echo(1, "tensor_shape { dim { size: -1 } } float_val: 1"), INVALID, PARSING),
    Row(PREDICT, echo(0, "float_val: 1"), INVALID, PARSING),
    Row(PREDICT, echo(101, "float_val: 1"), INVALID, PARSING),
    Row(
        PREDICT,
        echo(
            20,
            'resource_handle_val { device: "d" container: "c" name: "n" hash_code: 1 '
            'maybe_type_name: "t" dtypes_and_shapes { dtype: DT_FLOAT shape {} } }',
        ),
        INVALID,
        PARSING,
    ),
    Row(
        PREDICT,
        echo(21, 'variant_val { type_name: "int" metadata: "1" tensors { dtype: DT_FLOAT } }'),
        INVALID,
        PARSING,
    ),
    *(
        Row(PREDICT, echo(number, values), INVALID, f"Expects arg[0] to be float but {name} is ")
        for number, values, name in [
            (2, "double_val: 1", "double"),
            (3, "int_val: 1", "int32"),
            (7, 'string_val: "a"', "string"),
            (8, "scomplex_val: 1 scomplex_val: 2", "complex64"),
            (9, "int64_val: 1", "int64"),
            (10, "bool_val: true", "bool"),
            (11, "int_val: 1", "qint8"),
            (13, "int_val: 1", "qint32"),
            (18, "dcomplex_val: 1 dcomplex_val: 2", "complex128"),
            (19, "half_val: 1", "half"),
            (22, "uint32_val: 1", "uint32"),
            (23, "uint64_val: 1", "uint64"),
            (24, r'float8_val: "\001"', "float8_e5m2"),
            (29, "int_val: 1", "int4"),
        ]
    ),
    Row(
        PREDICT,
        'model_spec { name: "kitchen" version { value: -1 } }',
        "NOT_FOUND",
        "Servable not found for request: Specific(kitchen, -1)",
    ),
    Row(
        PREDICT,
        'model_spec { name: "kitchen" version_label: "" }',
        INVALID,
        "Unrecognized servable version label: ",
    ),
    Row(
        PREDICT,
        'model_spec { name: "twice" } inputs { key: "a" value { dtype: 1 } } '
        'inputs { key: "b" value { dtype: 1 } }',
        INVALID,
        'Endpoint "x:0" fed more than once.',
    ),
    Row(
        PREDICT,
        'model_spec { name: "twice" signature_name: "float8" } '
        r'inputs { key: "x" value { dtype: 24 float8_val: "\001" } }',
        OK,
        'model_spec { name: "twice" version { value: 1 } signature_name: "float8" } outputs { '
        r'key: "y" value { dtype: DT_FLOAT8_E5M2 tensor_shape {} float8_val: "\001" } }',
    ),
    Row(
        "Regress",
        f'model_spec {{ name: "half_plus" signature_name: "regress" }} {TEN}',
        OK,
        f"result {{ regressions {{ value: 7 }} }} {HALF_SPEC}",  # x / 2 + 2
    ),
    Row(
        "Regress",
        'model_spec { name: "half_plus" signature_name: "regress" } input { '
        'example_list_with_context { examples {} context { features { feature { key: "x" value { '
        "float_list { value: 10 } } } } } } }",
        OK,
        f"result {{ regressions {{ value: 7 }} }} {HALF_SPEC}",
    ),
    Row(
        "Regress",
        'model_spec { name: "half_plus" signature_name: "regress" } input { '
        "example_list_with_context { context {} } }",
        INVALID,
        "Input is empty.",
    ),
    *(
        Row(
            "Regress",
            f'model_spec {{ name: "half_plus" signature_name: "regress" }} {EXAMPLES % wrong}',
            INVALID,
            f"Name: <unknown>, Key: x, Index: 0.  Data types don't match. Data type: {name} but",
        )
        for wrong, name in [
            ("int64_list { value: 1 }", "int64"),
            ('bytes_list { value: "a" }', "string"),
        ]
    ),
    Row(
        "MultiInference",
        task(REGRESS, "regress") + task(REGRESS, "regress") + TEN,
        INVALID,
        "Duplicate evaluation of signature: regress",
    ),
    Row(
        "MultiInference",
        task(REGRESS, "regress") + task(CLASSIFY, "classify", "kitchen") + TEN,
        INVALID,
        "All ModelSpecs in a MultiInferenceRequest must access the same model name.",
    ),
    Row(
        "MultiInference",
        task("", "regress") + TEN,
        "UNIMPLEMENTED",
        "Unsupported signature method_name: ",
    ),
    Row(
        "MultiInference",
        task(CLASSIFY, "regress") + TEN,
        INVALID,
        'Expected classification signature outputs to contain at least one of "classes" or ',
    ),
    Row(
        "GetModelMetadata",
        'model_spec { name: "half_plus" }',
        INVALID,
        "GetModelMetadataRequest must specify at least one metadata_field",
    ),
    Row(
        "GetModelMetadata",
        'model_spec { name: "half_plus" } metadata_field: "signature_def" metadata_field: ""',
        INVALID,
        "Metadata field  is not supported",
    ),
    Row(
        STATUS,
        'model_spec { name: "kitchen" version { value: 0 } }',
        "NOT_FOUND",
        "Could not find version 0 of model kitchen",
    ),
    Row(
        STATUS,
        'model_spec { name: "kitchen" version_label: "nope" signature_name: "nope" }',
        OK,
        "model_version_status { version: 2 state: AVAILABLE status {} }",
    ),
    Row(
        STATUS,
        'model_spec { name: "broken" }',
        OK,
        "model_version_status { version: 1 state: END status { error_code: 5 error_message: "
        '"broken on purpose" } }',
    ),
    *(
        Row(RELOAD, request, code, answer)
        for request, code, answer in [
            ("", INVALID, "ServerModelConfig type not supported by HandleReloadConfigRequest."),
            ("config {}", INVALID, "ServerModelConfig type not supported"),
            (
                'config { custom_model_config { type_url: "t/t" value: "v" } }',
                INVALID,
                "ServerModelConfig type not supported",
            ),
            (
                "config { model_config_list { config { @ model_type: OTHER } } }",
                INVALID,
                "ModelServerConfig::model_type choice 2 not supported.",
            ),
            (
                "config { model_config_list { config { @ model_type: TENSORFLOW model_platform: "
                '"tensorflow" } } }',
                INVALID,
                "Illegal setting both ModelServerConfig::model_type (deprecated) and",
            ),
            (
                config(
                    'logging_config { log_collector_config { type: "t" filename_prefix: "p" } '
                    "sampling_config { sampling_rate: 1 per_task_sampling_configs { dc: 'd' "
                    "task_index: 1 sampling_rate: 1 } attributes: 1 } custom_logging_config {} }"
                ),
                INVALID,
                "No request-logger-creator provided.",
            ),
            (
                config("model_version_policy { specific {} }"),
                INVALID,
                "model kitchen: the policy specific names no versions",
            ),
            (
                config('model_version_policy { all {} } version_labels { key: "old" value: 9 }'),
                "FAILED_PRECONDITION",
                "Request to assign label to version 9 of model kitchen, which is not currently",
            ),
            (
                config(
                    "model_version_policy { latest { num_versions: 1 } } "
                    'version_labels { key: "new" value: 2 }'
                )
                + 'metric_names: "no_such_metric"',
                OK,
                "status {}",
            ),
        ]
    ),
    # After the last reload.
    Row(
        PREDICT,
        BOTH.replace('"kitchen"', '"kitchen" version_label: "new"'),
        OK,
        f"{SUM} {PRODUCT} {SPEC}",
    ),
    Row(
        PREDICT,
        BOTH.replace('"kitchen"', '"half_plus"'),
        "NOT_FOUND",
        "Servable not found for request: Latest(half_plus)",
    ),
    Row(
        RELOAD,
        config("model_version_policy { specific { versions: -1 versions: 2 versions: 2 } }"),
        OK,
        "status {}",
    ),
    Row(
        PREDICT,
        BOTH.replace('"kitchen"', '"kitchen" version_label: "new"'),
        INVALID,
        "Unrecognized",
    ),
    Row(RELOAD, "config { model_config_list {} }", OK, "status {}"),
    Row(PREDICT, BOTH, "NOT_FOUND", "Servable not found for request: Latest(kitchen)"),
]


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


METADATA = Row(
    "GetModelMetadata",
    'model_spec { name: "twice" } metadata_field: "signature_def" metadata_field: "signature_def"',
    OK,
    "",
)


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
