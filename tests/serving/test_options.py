"""The embedded server's flags and the files that they name."""

from __future__ import annotations

from pathlib import Path

import pytest
from absl import flags
from google.protobuf import text_format
from tensorflow_serving.config import model_server_config_pb2

from serving.server import command
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
        rest_api_port=0,
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


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "model_base_path"),
        (["--model_base_path=m", "--port=http"], "port"),
        (["--model_base_path=m", "--port=70000"], "port=70000"),
        (["--model_base_path=m", "--file_system_poll_wait_seconds=0"], "poll_wait_seconds"),
        (["--model_base_path=m", "--rest_api_port=8501"], "rest_api_port"),
        (["--model_base_path=m", "--model_name="], "model_name"),
        (["--model_base_path=gs://bucket/m"], "gs://bucket/m"),
        (["--model_base_path=m", "stray"], "stray"),
        (["--model_base_path=m", "--model_config_file=c"], "either flag --model_base_path"),
        (["--model_config_file=c", "--model_name=m"], "model_name"),
        (["--model_base_path=m", "--model_config_file_poll_wait_seconds=1"], "model_config_file"),
        (["--model_config_file=/nowhere"], "/nowhere can't be read: No such file"),
        (["--model_base_path=m", "--grpc_channel_arguments=age"], "'age' is not NAME=VALUE"),
        (["--model_base_path=m", "--batching_parameters_file=b"], "needs --enable_batching"),
        (["--model_base_path=m", "--grpc_max_threads=0"], "grpc_max_threads=0"),
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
        ("model_config_file", "\xff", "is no ModelServerConfig"),
        ("model_config_file", "", "Only ModelConfigList is currently supported"),
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
