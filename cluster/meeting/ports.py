"""Sockets of the meeting: to listen where TensorFlow will, and to connect to other workers."""

from __future__ import annotations

import errno
import ipaddress
import random
import socket
from collections.abc import Sequence
from typing import Final

from cluster.spec import host_and_port

# Ephemeral ports, which other processes get at random, begin at 32768 (ip_local_port_range).
PORTS: Final = range(20_000, 32_000)
CONNECT_TIMEOUT_S: Final = 2.0


def listen(port: int) -> socket.socket:
    """Listens at a port, on all interfaces as TensorFlow does."""
    family = socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET
    return socket.create_server(
        ("", port), family=family, dualstack_ipv6=family == socket.AF_INET6, backlog=1024
    )


def listen_at_first(ports: Sequence[int]) -> socket.socket:
    """Listens at the first of some ports that is free.

    Raises:
        OSError: if none is free.
    """
    for port in ports:
        try:
            return listen(port)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
    raise OSError(errno.EADDRINUSE, f"in use: {', '.join(map(str, ports[:9]))}")


def listen_at_free() -> socket.socket:
    """Listens at a port of ``PORTS`` that is free on all interfaces."""
    ports = list(PORTS)
    random.SystemRandom().shuffle(ports)  # the program's own generator stays as it is
    return listen_at_first(ports)


def connect(address: str) -> socket.socket:
    """Connects to ``host:port``.

    Raises:
        OSError: if no process listens there, or it does not answer in ``CONNECT_TIMEOUT_S``.
    """
    connection = socket.create_connection(host_and_port(address), timeout=CONNECT_TIMEOUT_S)
    if connection.getsockname() == connection.getpeername():
        # Where no process listens, TCP may connect a socket to itself.
        connection.close()
        raise ConnectionRefusedError(f"no process listens at {address}")
    return connection


def accepts(address: str) -> bool:
    """Returns whether a process accepts connections at ``host:port``."""
    try:
        with connect(address):
            return True
    except OSError:
        return False


def address(host: str, port: int) -> str:
    """Returns ``host:port``, with an IPv6 host in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def is_loopback(host: str) -> bool:
    """Returns whether a host is an address that means the own machine; a name is none."""
    try:
        return ipaddress.ip_address(host.partition("%")[0]).is_loopback
    except ValueError:
        return False
