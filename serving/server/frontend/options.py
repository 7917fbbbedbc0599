"""Parses and checks the flags of ``python -m serving.server`` and the files that they name."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from absl import flags
from google.protobuf.message import Message
from tensorflow_serving.config import model_server_config_pb2

from serving.protos import server_config_pb2
from serving.server import text_protos
from serving.server.errors import StatusError
from serving.server.frontend import tls
from serving.server.models import batching_parameters, model_config
from serving.server.models.batching_parameters import BatchingParameters

_METRICS_PATH = "/monitoring/prometheus/metrics"

T = TypeVar("T", bound=Message)


@dataclass(frozen=True)
class Options:
    """The checked flags, by their names, and the contents of the files that they name.

    Attributes:
        tls: keys and certificates of the port; None without TLS.
        metrics_path: path of the metrics on ``rest_api_port``; None without metrics.
        batching: how calls are gathered into batches; None without batching.
        models: the first configuration.
        model_config_file: the file that ``models`` was read from; None for a single model.
    """

    host: str
    port: int
    grpc_socket_path: str | None
    grpc_max_threads: int
    grpc_channel_arguments: tuple[tuple[str, int | str], ...]
    tls: server_config_pb2.SSLConfig | None
    enable_grpc_healthcheck_service: bool
    rest_api_port: int
    metrics_path: str | None
    batching: BatchingParameters | None
    models: model_server_config_pb2.ModelServerConfig
    model_config_file: Path | None
    model_config_file_poll_wait_seconds: float
    allow_version_labels_for_unavailable_models: bool
    file_system_poll_wait_seconds: float


def parse(arguments: Sequence[str], about: str) -> Options:
    """Parses the command line; ``--help`` prints ``about`` and the flags, and exits.

    Raises:
        flags.Error: a flag, or a file that it names, is wrong.
    """
    values = _definitions()
    if any(argument in ("--help", "-h", "-help") for argument in arguments):
        print(f"{about}\n{values.get_help()}")
        raise SystemExit(0)
    rest = values(["serving.server", *arguments])[1:]
    if rest:
        raise flags.Error(f"only flags are understood, not {rest[0]!r}")
    models = _read_models(values)
    return Options(
        host=values.host,
        port=values.port,
        grpc_socket_path=values.grpc_socket_path,
        grpc_max_threads=values.grpc_max_threads,
        grpc_channel_arguments=_channel_arguments(values.grpc_channel_arguments),
        tls=_read_tls(values),
        enable_grpc_healthcheck_service=values.enable_grpc_healthcheck_service,
        rest_api_port=values.rest_api_port or 0,
        metrics_path=_metrics_path(values),
        batching=_read_batching(values),
        models=models,
        model_config_file=values.model_config_file and Path(values.model_config_file),
        model_config_file_poll_wait_seconds=values.model_config_file_poll_wait_seconds,
        allow_version_labels_for_unavailable_models=(
            values.allow_version_labels_for_unavailable_models
        ),
        file_system_poll_wait_seconds=values.file_system_poll_wait_seconds,
    )


def _definitions() -> flags.FlagValues:
    values = flags.FlagValues()

    def define(
        kind: Callable[..., object], name: str, default: object, text: str, **more: object
    ) -> None:
        kind(name, default, text, flag_values=values, **more)

    text, whole, real, yes_no = (
        flags.DEFINE_string,
        flags.DEFINE_integer,
        flags.DEFINE_float,
        flags.DEFINE_bool,
    )
    port = {"lower_bound": 0, "upper_bound": 65535}
    define(text, "host", "127.0.0.1", "Address to listen on.")
    define(whole, "port", 8500, "Port for gRPC; 0 picks a free one.", **port)
    define(text, "grpc_socket_path", None, "Path of a UNIX socket to listen on for gRPC too.")
    define(
        whole,
        "grpc_max_threads",
        max(16, 4 * len(os.sched_getaffinity(0))),
        "Calls that are worked on at the same time; further calls wait.",
        lower_bound=1,
    )
    define(
        text,
        "grpc_channel_arguments",
        "",
        "gRPC settings, for example grpc.max_connection_age_ms=1.",
    )
    define(text, "ssl_config_file", None, "SSLConfig as text: keys and certificates for gRPC.")
    define(yes_no, "enable_grpc_healthcheck_service", False, "Answer grpc.health.v1 too.")
    define(whole, "rest_api_port", None, "Port for metrics; 0 picks a free one.", **port)
    define(text, "monitoring_config_file", None, "MonitoringConfig as text: enables metrics.")
    define(yes_no, "enable_batching", False, "Gather calls into batches.")
    define(
        text,
        "batching_parameters_file",
        None,
        "BatchingParameters as text: sizes and times of batches.",
    )
    define(text, "model_name", "default", "The single model's name in requests.")
    define(text, "model_base_path", None, "Folder of its versions; new versions are loaded.")
    define(text, "model_config_file", None, "ModelServerConfig as text: several models.")
    define(
        real,
        "model_config_file_poll_wait_seconds",
        0.0,
        "Seconds between two reads of that file; 0 reads it once.",
        lower_bound=0.0,
    )
    define(
        yes_no,
        "allow_version_labels_for_unavailable_models",
        False,
        "Allow new labels on versions that aren't loaded; labels at the start need it.",
    )
    define(
        real,
        "file_system_poll_wait_seconds",
        1.0,
        "Seconds between two searches for new versions.",
        lower_bound=0.01,
    )
    return values


def _read_models(values: flags.FlagValues) -> model_server_config_pb2.ModelServerConfig:
    base_path, path = values.model_base_path, values.model_config_file
    if bool(base_path) == bool(path):
        raise flags.Error("either flag --model_base_path or flag --model_config_file must be given")
    if path and values["model_name"].present:
        raise flags.Error("flag --model_name is for --model_base_path; the config file has names")
    if not values.model_name:
        raise flags.Error("flag --model_name must not be empty")
    if path is None and values.model_config_file_poll_wait_seconds:
        raise flags.Error("flag --model_config_file_poll_wait_seconds needs --model_config_file")
    if path is None:
        if "://" in base_path:
            raise flags.Error(
                f"flag --model_base_path={base_path}: only folders of this machine can be served; "
                "TF Serving itself reads remote ones"
            )
        return model_config.single_model(values.model_name, Path(base_path))
    config = _read(values, "model_config_file", model_server_config_pb2.ModelServerConfig())
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
        raise flags.Error("flag --batching_parameters_file needs --enable_batching")
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
    if (values.rest_api_port is None) != (path is None):
        raise flags.Error(
            "flags --rest_api_port and --monitoring_config_file go together: the port has metrics "
            "only; serving.server has no REST API"
        )
    if path is None:
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
