"""Parses and checks the flags of ``python -m serving.server`` and the files that they name."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from absl import flags
from google.protobuf.message import Message
from tensorflow_serving.config import model_server_config_pb2

from serving.protos import server_config_pb2
from serving.server import text_protos
from serving.server.errors import StatusError
from serving.server.frontend import flag_table, tls
from serving.server.models import batching_parameters, model_config
from serving.server.models.batching_parameters import BatchingParameters

_METRICS_PATH = "/monitoring/prometheus/metrics"

T = TypeVar("T", bound=Message)


@dataclass(frozen=True)
class Options:
    """The checked flags, by their names, and the contents of the files that they name.

    Attributes:
        tls: keys and certificates of the port; None without TLS.
        rest_api_port: port for REST and metrics; None without them.
        metrics_path: path of the metrics on ``rest_api_port``; None without metrics.
        batching: how calls are gathered into batches; None without batching.
        models: the first configuration.
        model_config_file: the file that ``models`` was read from; None for a single model.
        intra_op_threads: threads of an op; 0 leaves the number to TensorFlow.
        inter_op_threads: ops that run at the same time; 0 leaves the number to TensorFlow.
        notices: a line for each flag that is given and has no effect.
    """

    host: str
    port: int
    grpc_socket_path: str | None
    grpc_max_threads: int
    grpc_channel_arguments: tuple[tuple[str, int | str], ...]
    tls: server_config_pb2.SSLConfig | None
    enable_grpc_healthcheck_service: bool
    rest_api_port: int | None
    rest_api_num_threads: int
    rest_api_timeout_in_ms: int
    rest_api_enable_cors_support: bool
    metrics_path: str | None
    batching: BatchingParameters | None
    models: model_server_config_pb2.ModelServerConfig
    model_config_file: Path | None
    model_config_file_poll_wait_seconds: float
    allow_version_labels_for_unavailable_models: bool
    file_system_poll_wait_seconds: float
    max_num_load_retries: int
    load_retry_interval_micros: int
    enable_model_warmup: bool
    num_request_iterations_for_warmup: int
    enable_serialization_as_tensor_content: bool
    intra_op_threads: int
    inter_op_threads: int
    notices: tuple[str, ...]


def parse(arguments: Sequence[str], about: str) -> Options:
    """Parses the command line.

    ``--help`` prints ``about`` and the flags, ``--version`` the version of TensorFlow; both exit.

    Raises:
        flags.Error: a flag, or a file that it names, is wrong.
    """
    values = flag_table.define()
    if any(argument in ("--help", "-h", "-help") for argument in arguments):
        print(f"{about}\n{values.get_help()}")
        raise SystemExit(0)
    rest = values(["serving.server", *arguments])[1:]
    if rest:
        raise flags.Error(f"only flags are understood, not {rest[0]!r}")
    if values.version:
        print(f"serving.server with TensorFlow {importlib.metadata.version('tensorflow')}")
        raise SystemExit(0)
    notices = flag_table.notices(values)
    notices += _unused(values)
    intra_op_threads, inter_op_threads = _threads(values)
    return Options(
        host=values.host,
        port=values.port,
        grpc_socket_path=values.grpc_socket_path or None,
        grpc_max_threads=values.grpc_max_threads,
        grpc_channel_arguments=_channel_arguments(values.grpc_channel_arguments),
        tls=_read_tls(values),
        enable_grpc_healthcheck_service=values.enable_grpc_healthcheck_service,
        rest_api_port=_rest_api_port(values),
        rest_api_num_threads=values.rest_api_num_threads,
        rest_api_timeout_in_ms=values.rest_api_timeout_in_ms,
        rest_api_enable_cors_support=values.rest_api_enable_cors_support,
        metrics_path=_metrics_path(values),
        batching=_read_batching(values),
        models=_read_models(values),
        model_config_file=Path(values.model_config_file) if values.model_config_file else None,
        model_config_file_poll_wait_seconds=values.model_config_file_poll_wait_seconds,
        allow_version_labels_for_unavailable_models=(
            values.allow_version_labels_for_unavailable_models
        ),
        file_system_poll_wait_seconds=values.file_system_poll_wait_seconds,
        max_num_load_retries=values.max_num_load_retries,
        load_retry_interval_micros=values.load_retry_interval_micros,
        enable_model_warmup=values.enable_model_warmup,
        num_request_iterations_for_warmup=values.num_request_iterations_for_warmup,
        enable_serialization_as_tensor_content=values.enable_serialization_as_tensor_content,
        intra_op_threads=intra_op_threads,
        inter_op_threads=inter_op_threads,
        notices=tuple(notices),
    )


def _unused(values: flags.FlagValues) -> list[str]:
    """Returns a line for each flag that another flag makes unused, as in TF Serving."""
    unused: list[str] = []
    if values.model_config_file:
        names = [name for name in ("model_name", "model_base_path") if values[name].present]
        unused += [f"--{name} has no effect: --model_config_file has the models" for name in names]
    elif values.model_config_file_poll_wait_seconds:
        unused.append("--model_config_file_poll_wait_seconds has no effect: no --model_config_file")
    if values.monitoring_config_file and not values["rest_api_port"].present:
        unused.append("--monitoring_config_file has no effect: no --rest_api_port")
    return [f"flag {line}" for line in unused]


def _threads(values: flags.FlagValues) -> tuple[int, int]:
    """Returns the numbers of intra-op and of inter-op threads."""
    both = values.tensorflow_session_parallelism
    intra, inter = values.tensorflow_intra_op_parallelism, values.tensorflow_inter_op_parallelism
    if both and (intra or inter):
        raise flags.Error(
            "flag --tensorflow_session_parallelism sets both numbers: give either it, or "
            "--tensorflow_intra_op_parallelism and --tensorflow_inter_op_parallelism"
        )
    return both or intra, both or inter


def _rest_api_port(values: flags.FlagValues) -> int | None:
    if not values["rest_api_port"].present:
        return None
    port: int = values.rest_api_port
    if port and port == values.port:
        raise flags.Error(f"flag --rest_api_port={port} is also --port; the ports must differ")
    return port


def _read_models(values: flags.FlagValues) -> model_server_config_pb2.ModelServerConfig:
    base_path, path = values.model_base_path, values.model_config_file
    if not base_path and not path:
        raise flags.Error(
            "both --model_base_path and --model_config_file are empty; one of them must be given"
        )
    if not path:
        if not values.model_name:
            raise flags.Error("flag --model_name must not be empty")
        if "://" in base_path:
            raise flags.Error(
                f"flag --model_base_path={base_path}: only folders of this machine can be served; "
                "TF Serving itself reads remote ones"
            )
        return model_config.single_model(values.model_name, Path(base_path))
    config = _read(values, "model_config_file", model_server_config_pb2.ModelServerConfig())
    if config.WhichOneof("config") is None:
        raise flags.Error(f"flag --model_config_file={path}: it has no model_config_list")
    if config.HasField("custom_model_config"):
        raise flags.Error(
            f"flag --model_config_file={path}: "
            "ModelServer does not yet support custom model config; give a model_config_list"
        )
    try:
        models = model_config.model_configs(config)
    except StatusError as error:
        raise flags.Error(f"flag --model_config_file={path}: {error}") from None
    try:
        model_config.check_first_labels(models, values.allow_version_labels_for_unavailable_models)
    except StatusError as error:
        raise flags.Error(
            f"flag --model_config_file={path}: {error}. No version is available at the start, "
            "so labels need --allow_version_labels_for_unavailable_models"
        ) from None
    return config


def _read_batching(values: flags.FlagValues) -> BatchingParameters | None:
    path = values.batching_parameters_file
    if path and not values.enable_batching:
        raise flags.Error(
            "flag --batching_parameters_file is set without setting --enable_batching to true"
        )
    if not path:
        return BatchingParameters() if values.enable_batching else None
    try:
        return batching_parameters.read(Path(path))
    except ValueError as error:
        raise flags.Error(f"flag --batching_parameters_file: {error}") from None


def _channel_arguments(text: str) -> tuple[tuple[str, int | str], ...]:
    arguments: list[tuple[str, int | str]] = []
    for part in filter(None, text.split(",")):
        key, equals, value = part.partition("=")
        if not (key and equals):
            raise flags.Error(f"flag --grpc_channel_arguments: {part!r} is not NAME=VALUE")
        number = value.removeprefix("-").isdecimal() and value.isascii()
        arguments.append((key, int(value) if number else value))
    return tuple(arguments)


def _read_tls(values: flags.FlagValues) -> server_config_pb2.SSLConfig | None:
    if not values.ssl_config_file:
        return None
    config = _read(values, "ssl_config_file", server_config_pb2.SSLConfig())
    try:
        tls.check(config)
    except ValueError as error:
        raise flags.Error(f"flag --ssl_config_file={values.ssl_config_file}: {error}") from None
    return config


def _metrics_path(values: flags.FlagValues) -> str | None:
    path = values.monitoring_config_file
    if not path or not values["rest_api_port"].present:
        return None
    monitoring = _read(values, "monitoring_config_file", server_config_pb2.MonitoringConfig())
    if not monitoring.prometheus_config.enable:
        return None
    page = monitoring.prometheus_config.path or _METRICS_PATH
    if not page.startswith("/"):
        raise flags.Error(f"flag --monitoring_config_file={path}: path {page!r} must begin with /")
    return page


def _read(values: flags.FlagValues, flag: str, message: T) -> T:
    try:
        return text_protos.read(Path(values[flag].value), message)
    except ValueError as error:
        raise flags.Error(f"flag --{flag}: {error}") from None
