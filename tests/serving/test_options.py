"""The embedded server's flags and the files that they name."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from absl import flags
from google.protobuf import text_format
from tensorflow_serving.config import model_server_config_pb2

from serving.server import command
from serving.server.frontend import flag_table
from serving.server.frontend.options import Options, parse


def config(*models: str) -> str:
    """The text of a configuration; for each model what it says beyond the usual."""
    usual = 'name: "m" base_path: "/m"'
    return f"model_config_list {{ {' '.join(f'config {{ {usual} {more} }}' for more in models)} }}"


TENSORFLOW = 'model_platform: "tensorflow"'


def test_defaults_are_tf_servings_but_for_the_host_and_waiting_calls():
    options = parse(["--model_base_path=/models/m"], "")
    assert options == Options(
        host="127.0.0.1",
        port=8500,
        grpc_socket_path=None,
        grpc_max_threads=options.grpc_max_threads,
        grpc_channel_arguments=(),
        tls=None,
        enable_grpc_healthcheck_service=False,
        rest_api_port=None,
        rest_api_num_threads=options.rest_api_num_threads,
        rest_api_timeout_in_ms=30_000,
        rest_api_enable_cors_support=False,
        metrics_path=None,
        batching=None,
        models=text_format.Parse(
            'model_config_list { config { name: "default" base_path: "/models/m" '
            'model_platform: "tensorflow" } }',
            model_server_config_pb2.ModelServerConfig(),
        ),
        model_config_file=None,
        model_config_file_poll_wait_seconds=0,
        allow_version_labels_for_unavailable_models=False,
        file_system_poll_wait_seconds=1,
        max_num_load_retries=5,
        load_retry_interval_micros=60_000_000,
        enable_model_warmup=True,
        num_request_iterations_for_warmup=0,
        enable_serialization_as_tensor_content=False,
        intra_op_threads=0,
        inter_op_threads=0,
        notices=(),
    )
    assert options.grpc_max_threads >= 16


def test_channel_arguments_and_files_are_read(tmp_path: Path):
    (tmp_path / "batching").write_text("max_batch_size { value: 4 }")
    batching = ["--enable_batching", f"--batching_parameters_file={tmp_path}/batching"]
    channel = "--grpc_channel_arguments=grpc.max_connection_age_ms=5000,grpc.primary_user_agent=me"
    options = parse(["--model_base_path=m", *batching, channel], "")
    assert options.batching and options.batching.max_batch_size == 4
    assert options.grpc_channel_arguments == (
        ("grpc.max_connection_age_ms", 5000),
        ("grpc.primary_user_agent", "me"),
    )


def test_the_most_usual_line_of_tf_serving_is_taken():
    usual = ["--port=8500", "--rest_api_port=8501", "--model_name=m", "--model_base_path=/models/m"]
    options = parse([*usual, "--rest_api_timeout_in_ms=5000", "--rest_api_num_threads=3"], "")
    assert (options.rest_api_port, options.rest_api_timeout_in_ms) == (8501, 5000)
    assert (options.rest_api_num_threads, options.metrics_path) == (3, None)
    assert options.notices == ()


def test_flags_that_another_one_replaces_are_reported_as_without_effect(tmp_path: Path):
    path = tmp_path / "models.config"
    path.write_text(config(TENSORFLOW))
    # What the image's entry point adds before the caller's own flags.
    image = ["--model_name=model", "--model_base_path=/models/model"]
    options = parse([*image, f"--model_config_file={path}"], "")
    assert [model.name for model in options.models.model_config_list.config] == ["m"]
    assert [line.split()[1] for line in options.notices] == ["--model_name", "--model_base_path"]
    alone = ["--model_config_file_poll_wait_seconds=1", f"--monitoring_config_file={path}"]
    notices = parse(["--model_base_path=m", *alone], "").notices
    assert [n.split(": ")[1] for n in notices] == ["no --model_config_file", "no --rest_api_port"]


# TF Serving 2.20's main.cc and server.h: the name of each flag, and its default. None is a number
# that depends on the machine's CPUs.
TF_SERVING = {
    "port": 8500,
    "grpc_socket_path": "",
    "rest_api_port": 0,
    "rest_api_num_threads": None,
    "rest_api_timeout_in_ms": 30000,
    "rest_api_enable_cors_support": False,
    "enable_batching": False,
    "allow_version_labels_for_unavailable_models": False,
    "batching_parameters_file": "",
    "enable_per_model_batching_parameters": False,
    "model_config_file": "",
    "model_config_file_poll_wait_seconds": 0,
    "model_name": "default",
    "model_base_path": "",
    "num_load_threads": 0,
    "num_unload_threads": 0,
    "max_num_load_retries": 5,
    "load_retry_interval_micros": 60 * 1000 * 1000,
    "file_system_poll_wait_seconds": 1,
    "flush_filesystem_caches": True,
    "tensorflow_session_parallelism": 0,
    "tensorflow_session_config_file": "",
    "tensorflow_intra_op_parallelism": 0,
    "tensorflow_inter_op_parallelism": 0,
    "use_alts_credentials": False,
    "ssl_config_file": "",
    "platform_config_file": "",
    "per_process_gpu_memory_fraction": 0.0,
    "saved_model_tags": "serve",
    "grpc_channel_arguments": "",
    "grpc_max_threads": None,
    "enable_model_warmup": True,
    "num_request_iterations_for_warmup": 0,
    "version": False,
    "monitoring_config_file": "",
    "remove_unused_fields_from_bundle_metagraph": True,
    "prefer_tflite_model": False,
    "num_tflite_pools": None,
    "num_tflite_interpreters_per_pool": 1,
    "enable_signature_method_name_check": False,
    "xla_cpu_compilation_enabled": False,
    "xla_gpu_compilation_enabled": False,
    "enable_profiler": True,
    "thread_pool_factory_config_file": "",
    "mixed_precision": "",
    "skip_initialize_tpu": False,
    "enable_grpc_healthcheck_service": False,
    "enable_serialization_as_tensor_content": False,
}


def test_every_flag_of_tf_serving_is_known_with_its_type_and_default():
    ours = {flag.name: flag.default for flag in flag_table.ALL}
    assert ours.keys() == TF_SERVING.keys() | {"host"}
    for name, default in TF_SERVING.items():
        assert default is None or ours[name] == default, name
        # Where TF Serving takes whole seconds, parts of seconds are taken too.
        is_same = type(ours[name]) is type(0 if default is None else default)
        assert is_same or (type(ours[name]) is float and name.endswith("_wait_seconds")), name


@pytest.mark.parametrize(
    ("flag", "is_reported"),
    [
        ("--num_load_threads=2", True),
        ("--num_load_threads=0", False),
        ("--enable_profiler=false", True),
        ("--enable_profiler=true", False),
        ("--enable_serialization_as_tensor_content", False),
        ("--tensorflow_session_config_file=f", True),
        ("--per_process_gpu_memory_fraction=0.5", True),
        ("--prefer_tflite_model=false", False),
        ("--saved_model_tags=serve", False),
    ],
)
def test_a_flag_without_effect_is_reported_in_one_line(flag: str, is_reported: bool):
    notices = parse(["--model_base_path=m", flag], "").notices
    assert len(notices) == is_reported
    assert all(flag.partition("=")[0] in line and "\n" not in line for line in notices)


@pytest.mark.parametrize(
    ("spelling", "is_on"),
    [
        ("--enable_batching", True),
        ("--enable_batching=true", True),
        ("--enable_batching=false", False),
        ("--enable_batching=1", True),
        ("-enable_batching=true", True),
        ("--noenable_batching", False),
    ],
)
def test_spellings_of_yes_and_no(spelling: str, is_on: bool):
    assert (parse(["--model_base_path=m", spelling], "").batching is not None) == is_on


def test_threads_and_warm_up_are_read():
    options = parse(["--model_base_path=m", "--tensorflow_session_parallelism=3"], "")
    assert (options.intra_op_threads, options.inter_op_threads) == (3, 3)
    more = ["--tensorflow_intra_op_parallelism=2", "--enable_model_warmup=false"]
    options = parse(["--model_base_path=m", *more], "")
    assert (options.intra_op_threads, options.inter_op_threads) == (2, 0)
    assert not options.enable_model_warmup


def shown(default: bool | int | float | str) -> str:
    if isinstance(default, bool):
        return f"`{str(default).lower()}`"
    if isinstance(default, str):
        return f"`{default}`" if default else "none"
    return f"`{default:g}`" if isinstance(default, float) else f"`{default}`"


def test_the_documented_table_is_the_codes():
    text = (Path(__file__).parents[2] / "docs" / "serving.md").read_text()
    rows = re.findall(r"^\| `--(\w+)` \| (.*?) \| (.*?) \|$", text, re.MULTILINE)
    assert sorted(name for name, *_ in rows) == sorted(flag.name for flag in flag_table.ALL)
    documented = {name: (default, meaning) for name, default, meaning in rows}
    for flag in flag_table.ALL:
        default, meaning = documented[flag.name]
        assert "CPU" in default or default == shown(flag.default), flag.name
        assert meaning.startswith("no effect") == (flag in flag_table.IGNORED), flag.name
        assert meaning.startswith("refused") == (flag in flag_table.REFUSED), flag.name


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "model_base_path"),
        (["--model_base_path=m", "--port=http"], "port"),
        (["--model_base_path=m", "--port=70000"], "port=70000"),
        (["--model_base_path=m", "--file_system_poll_wait_seconds=-1"], "poll_wait_seconds"),
        (["--model_base_path=m", "--file_system_poll_wait_seconds=nan"], "=nan: must be finite"),
        (["--model_base_path=m", "--rest_api_port=8500"], "rest_api_port=8500 is also --port"),
        (["--model_base_path=m", "--model_name="], "model_name"),
        (["--model_base_path=gs://bucket/m"], "gs://bucket/m"),
        (["--model_base_path=m", "stray"], "stray"),
        (["--model_config_file=/nowhere"], "/nowhere can't be read: No such file"),
        (["--model_base_path=m", "--grpc_channel_arguments=age"], "'age' is not NAME=VALUE"),
        (
            ["--model_base_path=m", "--batching_parameters_file=b"],
            "without setting --enable_batching to true",
        ),
        (["--model_base_path=m", "--grpc_max_threads=0"], "grpc_max_threads=0"),
        (["--model_base_path=m", "--prefer_tflite_model"], "TFLite models are not served here"),
        (["--model_base_path=m", "--use_alts_credentials"], "ALTS is not available"),
        (["--model_base_path=m", "--saved_model_tags=serve,gpu"], "saved_model_tags=serve,gpu"),
        (["--model_base_path=m", "--no_such_flag=1"], "no_such_flag"),
        (["--model_base_path=m", "--enable_batching=perhaps"], "enable_batching"),
        (
            [
                "--model_base_path=m",
                "--tensorflow_session_parallelism=2",
                "--tensorflow_intra_op_parallelism=2",
            ],
            "tensorflow_session_parallelism sets both",
        ),
    ],
)
def test_bad_flags_exit_with_2_and_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
):
    refused(arguments, message, capsys)


@pytest.mark.parametrize(
    ("flag", "text", "message"),
    [
        ("model_config_file", "model_config_list { confg {} }", 'no field named "confg"'),
        (
            "model_config_file",
            "model_config_list {\n  config { name: 1 } }",
            "file', no ModelServerConfig at line 2, column",
        ),
        (
            "model_config_file",
            'model_config_list { config { name: "m" base_path: "m" } }',
            "Expected model m to have an absolute path or URI; got base_path()=m",
        ),
        (
            "model_config_file",
            'model_config_list { config { name: "m" } }',
            "Expected model m to have an absolute path or URI; got base_path()=",
        ),
        (
            "batching_parameters_file",
            "max_batch_size { value: 8 } allowed_batch_sizes: 4",
            "Last entry in allowed_batch_sizes must match max_batch_size; "
            "last entry was 4; expected 8",
        ),
        ("monitoring_config_file", "prometheus {}", "no MonitoringConfig at line 1, column"),
        ("model_config_file", "\xff", "file', no text of a ModelServerConfig"),
        ("model_config_file", "custom_model_config {}", "does not yet support custom model"),
        ("model_config_file", "", "it has no model_config_list"),
        (
            "model_config_file",
            config(TENSORFLOW, TENSORFLOW),
            "Illegal to list model m multiple times in config list",
        ),
        (
            "model_config_file",
            config(TENSORFLOW + " model_version_policy {specific {}}"),
            "names no versions",
        ),
        (
            "model_config_file",
            config(TENSORFLOW + ' version_labels {key: "stable" value: 1}'),
            "--allow_version_labels_for_unavailable_models",
        ),
        (
            "model_config_file",
            config('model_platform: "torch"'),
            "PlatformConfigMap has no entry for platform torch",
        ),
        ("monitoring_config_file", 'prometheus_config {enable: true path: "m"}', "begin with /"),
        ("batching_parameters_file", "max_batch_size { value: 0 }", "max_batch_size is 0"),
        ("ssl_config_file", 'server_key: "k" server_cert: "c"', "PEM"),
        ("ssl_config_file", "server_kye: 1", 'no field named "server_kye"'),
    ],
)
def test_bad_files_exit_with_2_and_one_line(
    flag: str, text: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    path = tmp_path / "file"
    path.write_text(text, encoding="latin-1")
    others = {
        "model_config_file": [],
        "monitoring_config_file": ["--model_base_path=m", "--rest_api_port=0"],
        "batching_parameters_file": ["--model_base_path=m", "--enable_batching"],
        "ssl_config_file": ["--model_base_path=m"],
    }
    refused([f"--{flag}={path}", *others[flag]], message, capsys)


def refused(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(flags.Error) as caught:
        parse(arguments, "")
    assert message in str(caught.value)
    assert command.main(arguments) == 2  # before TensorFlow is imported or anything listens
    printed = capsys.readouterr()
    assert printed.out == ""
    assert message in printed.err and printed.err.count("\n") == 1
