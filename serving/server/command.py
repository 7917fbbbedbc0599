"""A stand-in for TF Serving on laptops and in tests: one model over the same gRPC API.

``python -m serving.server --port=8500 --model_name=digits --model_base_path=/models/digits``

It prints one line on stdout, once it listens and a first version is up. SIGTERM lets calls under
way end and exits with 0, SIGINT with 130; a second signal ends it at once.
"""

from __future__ import annotations

import os
import signal
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from absl import flags

if TYPE_CHECKING:
    import grpc

_GRACE_S = 5.0  # for calls under way when told to stop
_EXIT_CODES = {signal.SIGTERM: 0, signal.SIGINT: 130}


@dataclass(frozen=True)
class Options:
    """What the flags say, checked."""

    host: str
    port: int
    model_name: str
    model_base_path: Path
    file_system_poll_wait_seconds: float


def main(arguments: Sequence[str]) -> int:
    """Serves until a signal comes; returns the exit code."""
    try:
        options = parse(arguments)
    except flags.Error as error:
        say(f"{error}")
        return 2
    # Blocked before anything starts a thread, and waited for below: a handler would have to wait
    # for its turn behind calls under way.
    signal.pthread_sigmask(signal.SIG_BLOCK, _EXIT_CODES)

    try:
        server, port = listen(options.host, options.port)
    except OSError as error:
        say(f"{error}")
        return 1

    with quiet_tensorflow():
        from serving.server import models, savedmodel, servables, service

    servable = servables.Servable(
        options.model_name, options.model_base_path, savedmodel.SavedModel, say
    )
    server.add_generic_rpc_handlers(service.handlers(models.Models({servable.name: servable}), say))
    server.start()
    servable.watch(options.file_system_poll_wait_seconds)

    told = None
    while told is None and not servable.wait(timeout_s=0):
        told = signal.sigtimedwait(_EXIT_CODES, 0.1)
    if told is None:
        with servable.use() as (version, _):
            ready = f"{options.host}:{port}, model {servable.name} version {version}"
        print(f"serving.server: ready on {ready}", flush=True)
    number = signal.sigwait(_EXIT_CODES) if told is None else told.si_signo
    for each in _EXIT_CODES:
        signal.signal(each, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _EXIT_CODES)
    servable.stop()
    server.stop(_GRACE_S).wait(2 * _GRACE_S)
    return _EXIT_CODES[signal.Signals(number)]


def parse(arguments: Sequence[str]) -> Options:
    """Reads the command line; raises absl's flags.Error for what is wrong. ``--help`` exits."""
    values = flags.FlagValues()
    flags.DEFINE_string("host", "127.0.0.1", "Address to listen on.", flag_values=values)
    flags.DEFINE_integer(
        "port",
        8500,
        "Port for gRPC; 0 picks a free one.",
        lower_bound=0,
        upper_bound=65535,
        flag_values=values,
    )
    flags.DEFINE_string("model_name", "default", "What callers call it.", flag_values=values)
    flags.DEFINE_string(
        "model_base_path",
        None,
        "Folder of the model's versions; new ones are picked up.",
        flag_values=values,
        required=True,
    )
    flags.DEFINE_float(
        "file_system_poll_wait_seconds",
        1.0,
        "Seconds between two looks for new versions.",
        lower_bound=0.01,
        flag_values=values,
    )
    if any(argument in ("--help", "-h", "-help") for argument in arguments):
        print(f"{__doc__}\n{values.get_help()}")
        raise SystemExit(0)
    rest = values(["serving.server", *arguments])[1:]
    if rest:
        raise flags.Error(f"only flags are understood, not {rest[0]!r}")
    if not values.model_name:
        raise flags.Error("flag --model_name must not be empty")
    if "://" in values.model_base_path:
        raise flags.Error(
            f"flag --model_base_path={values.model_base_path}: only folders of this machine can be "
            "served; TF Serving itself reads remote ones"
        )
    return Options(
        host=values.host,
        port=values.port,
        model_name=values.model_name,
        model_base_path=Path(values.model_base_path),
        file_system_poll_wait_seconds=values.file_system_poll_wait_seconds,
    )


def listen(host: str, port: int) -> tuple[grpc.Server, int]:
    """A gRPC server, not started yet, and its port; raises OSError if the port can't be had."""
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # read when grpc is imported
    import grpc

    server = grpc.server(
        ThreadPoolExecutor(max_workers=max(16, 4 * (os.cpu_count() or 1))),
        options=(
            ("grpc.max_send_message_length", -1),
            ("grpc.max_receive_message_length", -1),
            ("grpc.so_reuseport", 0),  # two servers on one port would share its calls
        ),
    )
    address = f"{host}:{port}"
    try:
        return server, server.add_insecure_port(address)
    except RuntimeError:
        message = f"can't listen on {address}: the port is taken, or the host isn't this machine's"
        raise OSError(message) from None


def say(line: str) -> None:
    """Tells a person something, on stderr."""
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
