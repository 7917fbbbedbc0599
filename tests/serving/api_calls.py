"""Calls, in this order, with TF Serving's answers; together they set every field of its API."""

from __future__ import annotations

from typing import NamedTuple


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

METADATA = Row(
    "GetModelMetadata",
    'model_spec { name: "twice" } metadata_field: "signature_def" metadata_field: "signature_def"',
    OK,
    "",
)
