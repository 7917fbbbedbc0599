"""Short messages between two workers: one JSON object per line, over one TCP connection."""

from __future__ import annotations

import json
import select
import socket
from typing import Any, Final

MAX_MESSAGE_BYTES: Final = 8192  # of a line, its end included
KERNEL_TIMEOUT_S: Final = 7.0  # without an acknowledgement the kernel breaks the connection

Message = dict[str, Any]


class Closed(ConnectionError):  # noqa: N818
    """The connection has ended; the error's message gives the reason, for people."""


class Channel:
    """One end of a connection.

    Reading and writing never block. The kernels of both machines exchange a keepalive packet each
    second. So the loss of a machine breaks the connection even if its processes were busy.

    Args:
        connection: a connected socket; the channel owns it from here on.
    """

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._unread = bytearray()
        connection.setblocking(False)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in (
            (socket.TCP_NODELAY, 1),
            (socket.TCP_KEEPIDLE, 1),
            (socket.TCP_KEEPINTVL, 1),
            (socket.TCP_KEEPCNT, round(KERNEL_TIMEOUT_S)),
            (socket.TCP_USER_TIMEOUT, round(1000 * KERNEL_TIMEOUT_S)),
        ):
            connection.setsockopt(socket.IPPROTO_TCP, option, value)

    def fileno(self) -> int:
        """Returns the descriptor, for ``select``; -1 once closed."""
        return self._connection.fileno()

    @property
    def own_host(self) -> str:
        """The address of this side, as the connection uses it."""
        return _host(self._connection.getsockname())

    @property
    def peer_host(self) -> str:
        """The address of the other side, as this side sees it."""
        return _host(self._connection.getpeername())

    def send(self, message: Message) -> None:
        """Sends a message. If the connection is broken, the message is lost without an error.

        ``receive`` raises that error.

        Raises:
            ValueError: if the message is longer than ``MAX_MESSAGE_BYTES``.
        """
        line = json.dumps(message).encode() + b"\n"
        if len(line) > MAX_MESSAGE_BYTES:
            raise ValueError(f"a message of {len(line)} bytes: {MAX_MESSAGE_BYTES} are the most")
        try:
            # At a few bytes per second, only a broken connection can have a full buffer.
            self._connection.send(line)
        except OSError:
            return

    def receive(self) -> list[Message]:
        """Returns the messages that have arrived since the last call, without waiting for more.

        Raises:
            Closed: if the other side has closed the connection, is lost, or sent something that is
                not a message. Earlier calls have returned all messages before that.
        """
        try:
            data = self._connection.recv(MAX_MESSAGE_BYTES)
        except (BlockingIOError, InterruptedError):
            return []
        except ConnectionResetError:
            data = b""
        except OSError as error:
            raise Closed((error.strerror or str(error)).lower()) from None
        if not data:
            raise Closed("its process has ended")
        self._unread += data
        *lines, self._unread = self._unread.split(b"\n")
        if len(self._unread) > MAX_MESSAGE_BYTES:
            raise Closed("it sent an invalid message")
        return [_parse(line) for line in lines]

    def wait(self, timeout_s: float) -> bool:
        """Waits for data, for ``timeout_s`` at most; returns whether ``receive`` has some."""
        poll = select.poll()
        poll.register(self._connection, select.POLLIN)
        return bool(poll.poll(1000 * timeout_s))

    def close(self) -> None:
        """Closes the connection; a second call does nothing."""
        self._connection.close()


def _host(address: Any) -> str:
    """Returns the host of a socket's address; an IPv4 one in IPv6's form as IPv4."""
    return str(address[0]).removeprefix("::ffff:")


def _parse(line: bytearray) -> Message:
    try:
        message = json.loads(line)
    except (ValueError, RecursionError):
        message = None
    if not isinstance(message, dict):
        raise Closed("it sent an invalid message")
    return message
