"""Where the gRPC server listens: ports, sockets, threads, TLS."""

from __future__ import annotations

import os
import queue
import socket
import ssl
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc

from serving.protos.server_config_pb2 import SSLConfig

# Calls that may wait for their turn, each with its request and a thread (some 50 KB). A server that
# takes any number of them runs out of memory.
_MAX_WAITING = 1000


def reserve(host: str, port: int, socket_path: str | None = None) -> socket.socket:
    """Takes a port for ``listen``; until then, who connects is refused at once.

    Args:
        host: address to listen on.
        port: 0 picks a free one.
        socket_path: of a UNIX socket that is to be had, too.

    Raises:
        OSError: it can't be had.
    """
    if socket_path is not None and not os.access(Path(socket_path).parent, os.W_OK):
        raise _no_socket(socket_path)
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        reserved = socket.socket(family, kind)
    except OSError:
        raise _no_port(host, port) from None
    # With this, gRPC may listen on the port while it is bound here, as nobody listens yet.
    reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        reserved.bind(address)
    except OSError:
        reserved.close()
        raise _no_port(host, port) from None
    return reserved


def listen(
    host: str,
    port: int,
    *,
    socket_path: str | None = None,
    max_threads: int = 16,
    tls: SSLConfig | None = None,
    channel_arguments: Sequence[tuple[str, int | str]] = (),
) -> tuple[grpc.Server, str]:
    """Makes a gRPC server, not started yet.

    It has a thread for each call, so that a thousand callers who never send their requests hold up
    nobody; ``in_turns`` limits how many do something at once. With more waiting than that, the next
    call is refused, with RESOURCE_EXHAUSTED.

    Args:
        host: address to listen on.
        port: 0 picks a free one.
        socket_path: a UNIX socket to listen on too, without TLS.
        max_threads: calls that are to be worked on at once.
        tls: keys and certificates of the port, checked by ``check``.
        channel_arguments: gRPC's, by name; they win over those that are set here.

    Returns:
        The server, and the address of the port.

    Raises:
        OSError: the port or the socket can't be had.
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
    address = _shown(host, port)
    try:
        if tls is None:
            port = server.add_insecure_port(address)
        else:
            port = server.add_secure_port(address, _credentials(tls))
    except RuntimeError:
        raise _no_port(host, port) from None
    if socket_path is not None:
        try:
            server.add_insecure_port(f"unix:{socket_path}")
        except RuntimeError:
            raise _no_socket(socket_path) from None
    return server, _shown(host, port)


def _shown(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _no_port(host: str, port: int) -> OSError:
    return OSError(
        f"can't listen on {_shown(host, port)}: the port is taken, or the host isn't this machine's"
    )


def _no_socket(path: str) -> OSError:
    return OSError(f"can't listen on {path}: its folder must be there, writable, its path short")


def in_turns(
    handlers: Sequence[grpc.GenericRpcHandler], service: str, max_threads: int
) -> grpc.GenericRpcHandler:
    """Lets calls of a service wait until fewer than ``max_threads`` are worked on.

    TF Serving refuses such calls. One whose deadline passes while it waits is not worked on.

    Args:
        handlers: of this service, whose methods are unary, and of others; those don't wait.
        service: the service's full name.
        max_threads: its calls that are worked on at once.
    """
    turns: queue.SimpleQueue[None] = queue.SimpleQueue()  # far quicker than a semaphore
    for _ in range(max_threads):
        turns.put(None)

    def in_turn(answer: Callable[..., Any]) -> Callable[..., Any]:
        def wait_and_answer(request: Any, context: grpc.ServicerContext) -> Any:
            try:
                turns.get_nowait()
            except queue.Empty:
                # Without a deadline that is 300 billion years, which no lock can wait for.
                left_s = min(context.time_remaining(), threading.TIMEOUT_MAX)
                try:
                    turns.get(timeout=left_s)
                except queue.Empty:
                    text = "Deadline exceeded while the call waited for its turn"
                    context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, text)
            try:
                return answer(request, context)
            finally:
                turns.put(None)

        return wait_and_answer

    found: dict[str, grpc.RpcMethodHandler] = {}  # of methods that there are

    class InTurns(grpc.GenericRpcHandler):
        def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
            name = details.method
            method = found.get(name)
            if method is None:
                method = next(filter(None, (each.service(details) for each in handlers)), None)
                if method is not None:
                    found[name] = method = limited(name, method)
            return method

    def limited(name: str, method: grpc.RpcMethodHandler) -> grpc.RpcMethodHandler:
        if not name.startswith(f"/{service}/"):
            return method
        return grpc.unary_unary_rpc_method_handler(
            in_turn(method.unary_unary), method.request_deserializer, method.response_serializer
        )

    return InTurns()


def check(tls: SSLConfig) -> None:
    """Raises ValueError if keys and certificates can't be used; gRPC would not say why."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    held = os.memfd_create("pem")  # ssl reads files only, and the key must not lie on a disk
    try:
        os.write(held, f"{tls.server_key}\n{tls.server_cert}".encode())
        context.load_cert_chain(f"/proc/self/fd/{held}", password="")
    except ssl.SSLError as error:
        raise ValueError(
            f"server_key and server_cert must be a key and its certificate as PEM texts: {error}"
        ) from None
    finally:
        os.close(held)
    if tls.client_verify and not tls.custom_ca:
        raise ValueError(
            "client_verify needs custom_ca, which clients' certificates are held against"
        )
    if tls.custom_ca:
        try:
            context.load_verify_locations(cadata=tls.custom_ca)
        except ssl.SSLError as error:
            raise ValueError(f"custom_ca must be certificates as PEM text: {error}") from None


def _credentials(tls: SSLConfig) -> grpc.ServerCredentials:
    return grpc.ssl_server_credentials(
        [(tls.server_key.encode(), tls.server_cert.encode())],
        root_certificates=tls.custom_ca.encode() or None,
        require_client_auth=tls.client_verify,
    )
