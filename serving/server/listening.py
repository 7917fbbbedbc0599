"""Where the gRPC server listens: ports, sockets, threads, TLS."""

from __future__ import annotations

import os
import ssl
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc

from serving.protos.server_config_pb2 import SSLConfig

# Calls that may wait for their turn, each with its request and a thread (some 50 KB). A server that
# takes any number of them runs out of memory.
_MAX_WAITING = 1000


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

    It has a thread for each call, so that callers who never send their requests hold up nobody;
    ``in_turns`` limits how many do something at once. With a thousand calls waiting, the next one
    is refused, with RESOURCE_EXHAUSTED.

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
    shown = f"[{host}]" if ":" in host else host
    try:
        address = f"{shown}:{port}"
        if tls is None:
            port = server.add_insecure_port(address)
        else:
            port = server.add_secure_port(address, _credentials(tls))
    except RuntimeError:
        message = f"can't listen on {address}: the port is taken, or the host isn't this machine's"
        raise OSError(message) from None
    if socket_path is not None:
        try:
            server.add_insecure_port(f"unix:{socket_path}")
        except RuntimeError:
            message = (
                f"can't listen on {socket_path}: its folder must be there, writable, its path short"
            )
            raise OSError(message) from None
    return server, f"{shown}:{port}"


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
    turns = threading.Semaphore(max_threads)

    def in_turn(answer: Callable[..., Any]) -> Callable[..., Any]:
        def wait_and_answer(request: Any, context: grpc.ServicerContext) -> Any:
            free = turns.acquire(blocking=False)
            # Without a deadline that is 300 billion years, which no lock can wait for.
            if not free and not turns.acquire(
                timeout=min(context.time_remaining(), threading.TIMEOUT_MAX)
            ):
                text = "Deadline exceeded while the call waited for its turn"
                context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, text)
            try:
                return answer(request, context)
            finally:
                turns.release()

        return wait_and_answer

    class InTurns(grpc.GenericRpcHandler):
        def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
            for handler in handlers:
                method = handler.service(details)
                if method is not None and not details.method.startswith(f"/{service}/"):
                    return method
                if method is not None:
                    return grpc.unary_unary_rpc_method_handler(
                        in_turn(method.unary_unary),
                        method.request_deserializer,
                        method.response_serializer,
                    )
            return None

    return InTurns()


def check(tls: SSLConfig) -> None:
    """Raises ValueError if keys and certificates can't be used; gRPC would not say why."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    held = os.memfd_create("pem")  # ssl reads files only, and the key must not lie on a disk
    try:
        os.write(held, f"{tls.server_key}\n{tls.server_cert}".encode())
        context.load_cert_chain(f"/proc/self/fd/{held}")
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
