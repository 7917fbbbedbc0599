"""The gRPC server: its port, UNIX socket, threads and settings."""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc

from serving.protos.server_config_pb2 import SSLConfig
from serving.server.frontend.tls import credentials

# Largest number of waiting calls. Each has its request and a thread (some 50 KB) in memory, so that
# memory would run out without a limit.
_MAX_WAITING = 1000


def reserve(host: str, port: int, socket_path: str | None = None) -> socket.socket:
    """Binds a port for ``make``; until then, connections to it are refused at once.

    Args:
        host: address to listen on.
        port: 0 picks a free one.
        socket_path: path of a UNIX socket, whose folder is checked.

    Raises:
        OSError: the port is taken, or the socket's folder can't be written to.
    """
    if socket_path is not None and not os.access(Path(socket_path).parent, os.W_OK):
        raise _socket_error(socket_path)
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        reserved = socket.socket(family, kind)
    except OSError:
        raise _port_error(host, port) from None
    # Allows gRPC to listen on the port although it is bound here: this socket does not listen.
    reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        reserved.bind(address)
    except OSError:
        reserved.close()
        raise _port_error(host, port) from None
    return reserved


def make(
    host: str,
    port: int,
    *,
    socket_path: str | None = None,
    max_threads: int = 16,
    tls: SSLConfig | None = None,
    channel_arguments: Sequence[tuple[str, int | str]] = (),
) -> tuple[grpc.Server, str]:
    """Makes a gRPC server that is not started yet.

    It has a thread for each call, so that connections that never send a request do not block
    others; ``limit_concurrency`` limits how many threads work. With more than 1,000 waiting
    calls, the next call is refused with RESOURCE_EXHAUSTED.

    Args:
        host: address to listen on.
        port: 0 picks a free one.
        socket_path: path of a UNIX socket to listen on too, without TLS.
        max_threads: number of calls that are worked on at the same time.
        tls: the port's keys and certificates, which ``tls.check`` has accepted.
        channel_arguments: gRPC's settings by name; they override those that are set here.

    Returns:
        The server, and the address of the port.

    Raises:
        OSError: the port is taken, or the socket can't be made.
    """
    server = grpc.server(
        ThreadPoolExecutor(max_workers=max_threads + _MAX_WAITING),
        options=tuple(
            {
                "grpc.max_send_message_length": -1,
                "grpc.max_receive_message_length": -1,
                "grpc.so_reuseport": 0,  # two servers on one port would share its calls
                **dict(channel_arguments),
            }.items()
        ),
        maximum_concurrent_rpcs=max_threads + _MAX_WAITING,
    )
    address = _format_address(host, port)
    try:
        if tls is None:
            port = server.add_insecure_port(address)
        else:
            port = server.add_secure_port(address, credentials(tls))
    except RuntimeError:
        raise _port_error(host, port) from None
    if socket_path is not None:
        try:
            server.add_insecure_port(f"unix:{socket_path}")
        except RuntimeError:
            raise _socket_error(socket_path) from None
    return server, _format_address(host, port)


def _format_address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _port_error(host: str, port: int) -> OSError:
    address = _format_address(host, port)
    return OSError(
        f"can't listen on {address}: the port is taken, or the host isn't this machine's"
    )


def _socket_error(path: str) -> OSError:
    return OSError(
        f"can't listen on {path}: its folder must exist and be writable, and the path must be "
        "short (about 100 bytes)"
    )
