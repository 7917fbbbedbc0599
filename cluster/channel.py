"""Small messages between two workers: a JSON object a line, over one TCP connection."""

from __future__ import annotations

import json
import select
import socket
from typing import Any, Final

MESSAGE_BYTES: Final = 8192  # the longest line that is sent or taken
CUT_S: Final = 7.0  # after which the kernel gives up a machine that acknowledges nothing

Message = dict[str, Any]


class Closed(ConnectionError):  # noqa: N818
    """The connection is over; the message says why, for people."""


class Channel:
    """One end of a connection.

    Reading and writing never wait. The kernel of each machine asks the other's, once a second, to
    acknowledge something: a machine that is gone breaks the connection, however busy its processes
    were.

    Args:
        connection: connected; the channel owns it from here on.
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
            (socket.TCP_KEEPCNT, round(CUT_S)),
            (socket.TCP_USER_TIMEOUT, round(1000 * CUT_S)),
        ):
            connection.setsockopt(socket.IPPROTO_TCP, option, value)

    def fileno(self) -> int:
        """What ``select`` waits for; -1 once closed."""
        return self._connection.fileno()

    def send(self, message: Message) -> None:
        """Sends a message; one that can't arrive is lost without words: reading says why.

        Raises:
            ValueError: if it is longer than ``MESSAGE_BYTES``.
        """
        line = json.dumps(message).encode() + b"\n"
        if len(line) > MESSAGE_BYTES:
            raise ValueError(f"a message of {len(line)} bytes: {MESSAGE_BYTES} are the most")
        try:
            # A few bytes a second: the kernel takes them whole, or the other side is beyond help.
            self._connection.send(line)
        except OSError:
            return

    def receive(self) -> list[Message]:
        """The messages that have come since, without waiting for more.

        Raises:
            Closed: if the other side has closed, is gone, or does not speak as we do. What it had
                said before was given by earlier calls.
        """
        try:
            data = self._connection.recv(MESSAGE_BYTES)
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
        if len(self._unread) > MESSAGE_BYTES:
            raise Closed("it sent what is no message")
        return [_message(line) for line in lines]

    def wait(self, timeout_s: float) -> bool:
        """Returns whether there is something to ``receive``, after ``timeout_s`` at the most."""
        poll = select.poll()
        poll.register(self._connection, select.POLLIN)
        return bool(poll.poll(1000 * timeout_s))

    def close(self) -> None:
        """Closes it; once more does no harm."""
        self._connection.close()


def _message(line: bytearray) -> Message:
    try:
        message = json.loads(line)
    except ValueError:
        message = None
    if not isinstance(message, dict):
        raise Closed("it sent what is no message")
    return message


def host_and_port(address: str) -> tuple[str, int]:
    """The two parts of ``host:port``, as sockets take them."""
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)
