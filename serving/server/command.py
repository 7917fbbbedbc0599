"""A stand-in for TF Serving on laptops and in tests, over the same gRPC API.

``python -m serving.server --port=8500 --model_name=digits --model_base_path=/models/digits``
``python -m serving.server --port=8500 --model_config_file=/models/models.config``

It listens once every model has a version, and then prints one line on stdout. SIGTERM lets calls
under way end and exits with 0, SIGINT with 130; a second signal ends it at once.
"""

from __future__ import annotations

import os
import signal
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from absl import flags

if TYPE_CHECKING:
    import socket
    from pathlib import Path

    import grpc

    from serving.server.frontend.concurrency import Turns
    from serving.server.frontend.health import HealthService
    from serving.server.frontend.metrics import Metrics
    from serving.server.frontend.options import Options
    from serving.server.models.reloadable_registry import ReloadableRegistry
    from serving.server.rest.http_server import HttpServer

_GRACE_S = 5.0  # for calls under way when the server stops
_EXIT_CODES = {signal.SIGTERM: 0, signal.SIGINT: 130}


def main(arguments: Sequence[str]) -> int:
    """Serves until a signal comes; returns the exit code."""
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # read when grpc is imported
    from serving.server.frontend import grpc_server
    from serving.server.frontend.concurrency import Turns
    from serving.server.frontend.health import HealthService
    from serving.server.frontend.metrics import Metrics
    from serving.server.frontend.options import parse

    try:
        options = parse(arguments, __doc__ or "")
    except flags.Error as error:
        print_error(f"{error}")
        return 2
    for notice in options.notices:
        print_error(notice)
    # Blocked before a thread is started, and waited for below. A signal handler in Python would
    # only run between calls under way.
    signal.pthread_sigmask(signal.SIG_BLOCK, _EXIT_CODES)

    try:
        reserved_port = grpc_server.reserve(options.host, options.port, options.grpc_socket_path)
        http_server = None
        if options.rest_api_port is not None:
            from serving.server.rest.http_server import HttpServer

            http_server = HttpServer(options.host, options.rest_api_port)
    except OSError as error:
        print_error(f"{error}")
        return 1

    metrics = Metrics()
    registry = _start_models(options, metrics)
    if http_server is not None:
        http_server.start(
            options.metrics_path,
            metrics.page,
            num_threads=options.rest_api_num_threads,
            timeout_s=options.rest_api_timeout_in_ms / 1000,
            has_cors=options.rest_api_enable_cors_support,
        )
    health = HealthService()
    turns = Turns(options.grpc_max_threads)
    server: grpc.Server | None = None
    received = _wait_for_models_or_signal(registry)
    if received is None:
        # The server listens only now: with several replicas, a caller would otherwise get a
        # NOT_FOUND from this one.
        try:
            server, address = _make_server(options, reserved_port, registry, metrics, health, turns)
        except OSError as error:
            print_error(f"{error}")
            return 1
        server.start()
        if http_server is not None:
            _serve_rest(http_server, registry, metrics, turns)
        health.set_serving()
        lines = [f"ready on {address}", registry.describe()]
        if options.grpc_socket_path is not None:
            lines.append(f"also on unix:{options.grpc_socket_path}")
        if http_server is not None:
            lines.append(f"REST on {http_server.url}")
            if options.metrics_path is not None:
                lines.append(f"metrics on {http_server.url}{options.metrics_path}")
        print(f"serving.server: {', '.join(lines)}", flush=True)
        received = signal.Signals(signal.sigwait(_EXIT_CODES))

    for number in _EXIT_CODES:
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _EXIT_CODES)
    health.stop()
    registry.stop()
    if server is not None:
        ended = server.stop(_GRACE_S)
        if http_server is not None:
            http_server.stop(_GRACE_S)
        ended.wait(2 * _GRACE_S)
    return _EXIT_CODES[received]


def _start_models(options: Options, metrics: Metrics) -> ReloadableRegistry:
    """Imports TensorFlow, and starts to load the configured models."""
    with quiet_tensorflow():
        import tensorflow as tf

        tf.config.threading.set_intra_op_parallelism_threads(options.intra_op_threads)
        tf.config.threading.set_inter_op_parallelism_threads(options.inter_op_threads)
        from serving.server.calls import warmup
        from serving.server.models import loading, reloadable_registry, servables
    from serving.server.models.model_config import ModelConfig
    from serving.server.models.saved_model import SavedModel

    warmups = max(1, options.num_request_iterations_for_warmup) * options.enable_model_warmup

    def warm_up(model: SavedModel, path: Path) -> None:
        for _ in range(warmups):
            warmup.run(model, path)

    load = metrics.counting(loading.loader(warm_up, options.batching, metrics.observe_batch))

    def start(model: ModelConfig) -> servables.Servable[SavedModel]:
        servable = servables.Servable(
            model.name,
            model.base_path,
            load,
            print_error,
            model.policy,
            options.max_num_load_retries,
            options.load_retry_interval_micros / 1e6,
        )
        servable.watch(options.file_system_poll_wait_seconds)
        return servable

    registry = reloadable_registry.ReloadableRegistry(
        options.models, start, options.allow_version_labels_for_unavailable_models
    )
    if options.model_config_file is not None and options.model_config_file_poll_wait_seconds:
        every_s = options.model_config_file_poll_wait_seconds
        reloadable_registry.watch_config_file(
            registry, options.model_config_file, every_s, print_error
        )
    return registry


def _wait_for_models_or_signal(registry: ReloadableRegistry) -> signal.Signals | None:
    """Waits until every model has a version; returns the signal that came before, or None."""
    while not registry.wait(timeout_s=0):
        received = signal.sigtimedwait(_EXIT_CODES, 0.1)
        if received is not None:
            return signal.Signals(received.si_signo)
    return None


def _make_server(
    options: Options,
    reserved_port: socket.socket,
    registry: ReloadableRegistry,
    metrics: Metrics,
    health: HealthService,
    turns: Turns,
) -> tuple[grpc.Server, str]:
    """Returns the gRPC server with all services, not started yet, and its address.

    Raises:
        OSError: the port or the socket can't be used.
    """
    from serving.server.calls import services
    from serving.server.frontend import grpc_server
    from serving.server.frontend.concurrency import limit_concurrency

    with reserved_port:
        server, address = grpc_server.make(
            options.host,
            reserved_port.getsockname()[1],
            socket_path=options.grpc_socket_path,
            max_threads=options.grpc_max_threads,
            tls=options.tls,
            channel_arguments=options.grpc_channel_arguments,
        )
    handlers = services.handlers(
        registry,
        print_error,
        metrics.observer(registry),
        options.enable_serialization_as_tensor_content,
    )
    inference = "tensorflow.serving.PredictionService"
    server.add_generic_rpc_handlers((limit_concurrency(handlers, inference, turns),))
    if options.enable_grpc_healthcheck_service:
        health.add_to(server)
    return server, address


def _serve_rest(
    server: HttpServer, registry: ReloadableRegistry, metrics: Metrics, turns: Turns
) -> None:
    from serving.server.rest.answers import Answers

    observe = metrics.observer(registry, "REST")
    server.set_answer(Answers(registry, turns, print_error, observe).answer)


def print_error(line: str) -> None:
    """Prints a message on stderr; a closed stderr does not stop the server."""
    with suppress(OSError):
        print(f"serving.server: {line}", file=sys.stderr, flush=True)


@contextmanager
def quiet_tensorflow() -> Iterator[None]:
    """Imports TensorFlow without its log messages, which no setting fully suppresses.

    C++ writes to stderr. The text goes to a file meanwhile, and is shown only if the import fails.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    with tempfile.TemporaryFile() as hidden:
        terminal = os.dup(2)
        os.dup2(hidden.fileno(), 2)
        try:
            import tensorflow as tf

            tf.get_logger().setLevel("ERROR")
            tf.config.list_physical_devices()  # logs a warning without a GPU, so it is called here
            yield
        except BaseException:
            hidden.seek(0)
            os.write(terminal, hidden.read())
            raise
        finally:
            os.dup2(terminal, 2)
            os.close(terminal)
