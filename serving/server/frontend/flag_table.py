"""The flags of ``python -m serving.server``: all of TF Serving 2.20's, and ``--host``."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from absl import flags

_CPUS = len(os.sched_getaffinity(0))
_MAX_PORT = 65535


@dataclass(frozen=True)
class Flag:
    """A flag; the type of its default is the type of its values.

    Attributes:
        name: without dashes.
        default: the value if the flag is not given.
        text: what it does; for a flag without effect, what the server does instead.
        least: smallest number allowed.
        most: largest number allowed.
    """

    name: str
    default: bool | int | float | str
    text: str
    least: float | None = None
    most: float | None = None


HONOURED = (
    Flag("host", "127.0.0.1", "Address to listen on."),
    Flag("port", 8500, "Port for gRPC; 0 picks a free one.", least=0, most=_MAX_PORT),
    Flag("grpc_socket_path", "", "Path of a UNIX socket to listen on for gRPC too."),
    Flag(
        "grpc_max_threads",
        max(16, 4 * _CPUS),
        "Calls that are worked on at the same time; further calls wait.",
        least=1,
    ),
    Flag("grpc_channel_arguments", "", "gRPC settings, for example grpc.max_connection_age_ms=1."),
    Flag("ssl_config_file", "", "SSLConfig as text: keys and certificates for gRPC."),
    Flag("enable_grpc_healthcheck_service", False, "Answer grpc.health.v1 too."),
    Flag(
        "rest_api_port",
        0,
        "Port for REST and metrics; not opened unless the flag is given; 0 picks a free one.",
        least=0,
        most=_MAX_PORT,
    ),
    Flag("rest_api_num_threads", 4 * _CPUS, "REST calls worked on at the same time.", least=1),
    Flag(
        "rest_api_timeout_in_ms",
        30_000,
        "Milliseconds that a REST call may take; 0 sets no limit.",
        least=0,
    ),
    Flag("rest_api_enable_cors_support", False, "Send CORS headers with REST answers."),
    Flag("monitoring_config_file", "", "MonitoringConfig as text: metrics on --rest_api_port."),
    Flag("enable_batching", False, "Gather calls into batches."),
    Flag("batching_parameters_file", "", "BatchingParameters as text: sizes and times of batches."),
    Flag("model_name", "default", "The single model's name in requests."),
    Flag("model_base_path", "", "Folder of its versions; new versions are loaded."),
    Flag("model_config_file", "", "ModelServerConfig as text: several models."),
    Flag(
        "model_config_file_poll_wait_seconds",
        0.0,
        "Seconds between two reads of that file; 0 reads it once.",
        least=0,
    ),
    Flag(
        "allow_version_labels_for_unavailable_models",
        False,
        "Allow new labels on versions that aren't loaded; labels at the start need it.",
    ),
    Flag(
        "file_system_poll_wait_seconds",
        1.0,
        "Seconds between two searches for new versions; 0 searches once.",
        least=0,
    ),
    Flag(
        "max_num_load_retries",
        5,
        "How often a version that failed to load is tried again while its files stay the same.",
        least=0,
    ),
    Flag(
        "load_retry_interval_micros",
        60_000_000,
        "Microseconds before each of these; a negative number does not wait.",
    ),
    Flag("enable_model_warmup", True, "Run a version's warm-up requests before it is available."),
    Flag(
        "num_request_iterations_for_warmup",
        0,
        "How often they are run; 0 runs them once.",
        least=0,
    ),
    Flag(
        "tensorflow_session_parallelism",
        0,
        "Threads of an op, and ops that run at the same time; 0 leaves them to TensorFlow.",
        least=0,
    ),
    Flag("tensorflow_intra_op_parallelism", 0, "Threads of an op.", least=0),
    Flag("tensorflow_inter_op_parallelism", 0, "Ops that run at the same time.", least=0),
    Flag(
        "enable_serialization_as_tensor_content",
        False,
        "Send the numbers of Predict's outputs as bytes in tensor_content, not in lists.",
    ),
    Flag("version", False, "Print TensorFlow's version and exit."),
)

# Accepted without effect; a value other than the default is reported with the text.
IGNORED = (
    Flag("enable_per_model_batching_parameters", False, "all models have the same parameters"),
    Flag("num_load_threads", 0, "each model has a thread that loads its versions"),
    Flag("num_unload_threads", 0, "the last call of a version, or its model's thread, unloads it"),
    Flag("flush_filesystem_caches", True, "caches are never flushed"),
    Flag("tensorflow_session_config_file", "", "TensorFlow's own settings are used"),
    Flag("platform_config_file", "", "the platform tensorflow is set by the other flags"),
    Flag("per_process_gpu_memory_fraction", 0.0, "TensorFlow takes GPU memory by its own rules"),
    Flag("remove_unused_fields_from_bundle_metagraph", True, "nothing is removed"),
    Flag("num_tflite_pools", _CPUS, "TFLite models are not served"),
    Flag("num_tflite_interpreters_per_pool", 1, "TFLite models are not served"),
    Flag("enable_signature_method_name_check", False, "method names are not checked"),
    Flag("xla_cpu_compilation_enabled", False, "XLA compiles what the model says, no more"),
    Flag("xla_gpu_compilation_enabled", False, "XLA compiles what the model says, no more"),
    Flag("enable_profiler", True, "there is no profiler service"),
    Flag("thread_pool_factory_config_file", "", "TensorFlow's own thread pools are used"),
    Flag("mixed_precision", "", "models compute with the dtypes that they were saved with"),
    Flag("skip_initialize_tpu", False, "TPUs are not used"),
)

# Only the default is accepted: a server that ignores another value gives wrong answers, or
# answers without the protection that was asked for.
REFUSED = (
    Flag("prefer_tflite_model", False, "TFLite models are not served here; TF Serving does"),
    Flag("use_alts_credentials", False, "ALTS is not available; --ssl_config_file is"),
    Flag("saved_model_tags", "serve", "only graphs with the tag serve are served here"),
)

ALL = (*HONOURED, *IGNORED, *REFUSED)

_DEFINE: dict[type, Callable[..., object]] = {
    bool: flags.DEFINE_bool,
    int: flags.DEFINE_integer,
    float: flags.DEFINE_float,
    str: flags.DEFINE_string,
}


def define() -> flags.FlagValues:
    """Returns all flags, not parsed yet."""
    values = flags.FlagValues()
    for flag in ALL:
        bounds: dict[str, Any] = {}
        if flag.least is not None:
            bounds["lower_bound"] = flag.least
        if flag.most is not None:
            bounds["upper_bound"] = flag.most
        text = f"Without effect: {flag.text}." if flag in IGNORED else flag.text
        text = f"Refused: {flag.text}." if flag in REFUSED else text
        _DEFINE[type(flag.default)](flag.name, flag.default, text, flag_values=values, **bounds)
        if isinstance(flag.default, float):  # nan is within all bounds
            flags.register_validator(flag.name, math.isfinite, "must be finite", values)
    return values


def notices(values: flags.FlagValues) -> list[str]:
    """Returns a line for each flag without effect that has a value other than its default.

    Raises:
        flags.Error: a refused flag has a value other than its default.
    """
    for flag in REFUSED:
        if values[flag.name].value not in (flag.default, ""):
            raise flags.Error(f"flag {_shown(values, flag)}: {flag.text}")
    return [
        f"flag {_shown(values, flag)} has no effect here: {flag.text}"
        for flag in IGNORED
        if values[flag.name].value != flag.default
    ]


def _shown(values: flags.FlagValues, flag: Flag) -> str:
    value = values[flag.name].value
    return f"--{flag.name}={str(value).lower() if isinstance(value, bool) else value}"
