"""A stand-in for TF Serving on laptops and in tests, over the same gRPC API.

``python -m serving.server --port=8500 --model_name=digits --model_base_path=/models/digits``
``python -m serving.server --port=8500 --model_config_file=/models/models.config``

It prints one line on stdout, once it listens and every model has a version. SIGTERM lets calls
under way end and exits with 0, SIGINT with 130; a second signal ends it at once.
"""

from __future__ import annotations

import os
import signal
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

from absl import flags

_GRACE_S = 5.0  # for calls under way when told to stop
_EXIT_CODES = {signal.SIGTERM: 0, signal.SIGINT: 130}


def main(arguments: Sequence[str]) -> int:
    """Serves until a signal comes; returns the exit code."""
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # read when grpc is imported
    from serving.server import listening, monitoring
    from serving.server.options import parse

    try:
        options = parse(arguments, __doc__ or "")
    except flags.Error as error:
        say(f"{error}")
        return 2
    # Blocked before anything starts a thread, and waited for below: a handler would have to wait
    # for its turn behind calls under way.
    signal.pthread_sigmask(signal.SIG_BLOCK, _EXIT_CODES)

    try:
        server, address = listening.listen(
            options.host,
            options.port,
            socket_path=options.grpc_socket_path,
            max_threads=options.grpc_max_threads,
            tls=options.tls,
            channel_arguments=options.grpc_channel_arguments,
        )
        pages = None
        if options.metrics_path is not None:
            pages = monitoring.Pages(options.host, options.rest_api_port, options.metrics_path)
    except OSError as error:
        say(f"{error}")
        return 1

    with quiet_tensorflow():
        from serving.server import configured, savedmodel, servables, service
    from serving.server.configs import ModelConfig
    from serving.server.health import Health
    from serving.server.metrics import Metrics

    metrics = Metrics()
    load = metrics.counting(savedmodel.loader(options.batching, metrics.observe_batch))

    def start(model: ModelConfig) -> servables.Servable[savedmodel.SavedModel]:
        servable = servables.Servable(model.name, model.base_path, load, say, model.policy)
        servable.watch(options.file_system_poll_wait_seconds)
        return servable

    models = configured.ConfiguredModels(
        options.models, start, options.allow_version_labels_for_unavailable_models
    )
    handlers = service.handlers(models, say, metrics.observer(models))
    inference = "tensorflow.serving.PredictionService"
    server.add_generic_rpc_handlers(
        (listening.in_turns(handlers, inference, options.grpc_max_threads),)
    )
    health = Health()
    if options.enable_grpc_healthcheck_service:
        server.add_generic_rpc_handlers((health.handler(),))
    server.start()
    if pages is not None:
        pages.start(metrics.page)
    if options.model_config_file is not None and options.model_config_file_poll_wait_seconds:
        every_s = options.model_config_file_poll_wait_seconds
        configured.follow(models, options.model_config_file, every_s, say)

    told = None
    while told is None and not models.wait(timeout_s=0):
        told = signal.sigtimedwait(_EXIT_CODES, 0.1)
    if told is None:
        health.set_serving()
        places = [f"ready on {address}", models.describe()]
        if options.grpc_socket_path is not None:
            places.append(f"also on unix:{options.grpc_socket_path}")
        if pages is not None:
            places.append(f"metrics on {pages.url}")
        print(f"serving.server: {', '.join(places)}", flush=True)
    number = signal.sigwait(_EXIT_CODES) if told is None else told.si_signo
    for each in _EXIT_CODES:
        signal.signal(each, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _EXIT_CODES)
    health.stop()
    models.stop()
    server.stop(_GRACE_S).wait(2 * _GRACE_S)
    return _EXIT_CODES[signal.Signals(number)]


def say(line: str) -> None:
    """Tells a person something, on stderr; if nobody reads that any more, serving goes on."""
    with suppress(OSError):
        print(f"serving.server: {line}", file=sys.stderr, flush=True)


@contextmanager
def quiet_tensorflow() -> Iterator[None]:
    """Imports TensorFlow without its chatter, which no setting fully silences.

    What C++ writes to stderr meanwhile is kept aside, and shown only if the import fails.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    with tempfile.TemporaryFile() as aside:
        terminal = os.dup(2)
        os.dup2(aside.fileno(), 2)
        try:
            import tensorflow as tf

            tf.get_logger().setLevel("ERROR")
            tf.config.list_physical_devices()  # here: where there is no GPU, it complains
            yield
        except BaseException:
            aside.seek(0)
            os.write(terminal, aside.read())
            raise
        finally:
            os.dup2(terminal, 2)
            os.close(terminal)
