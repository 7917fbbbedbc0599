"""Messages between the tasks of a step and ``cluster.slurm``.

Messages are lines of JSON: first ``Hello``; then ``{"signal": …}`` when Slurm has sent this task a
signal, and ``{"code": …}`` at the end. ``cluster.slurm`` sends ``{"signal": …}`` for the command.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import socket
from collections.abc import Iterator, Mapping
from typing import Any, Final

# Environment variables, not flags: other users can read command lines.
PORT_VARIABLE: Final = "CLUSTER_REPORT_PORT"
TOKEN_VARIABLE: Final = "CLUSTER_REPORT_TOKEN"
SEND_TIMEOUT_S: Final = 10.0
MAX_LINE_BYTES: Final = 4096
_READ_BYTES = 4096


@dataclasses.dataclass(frozen=True)
class Hello:
    """The first message of a task.

    Args:
        token: the secret that ``cluster.slurm`` has given to its tasks.
        rank: of the task in its step.
        size: number of tasks in the step.
        node: name of the task's node.
    """

    token: str
    rank: int
    size: int
    node: str


class Lines:
    """Collects what arrives on a connection, and cuts it into messages."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._unfinished = b""
        self.is_closed = False

    def read(self) -> Iterator[dict[str, Any]]:
        """Reads once and gives the messages that are complete; ``is_closed`` after the last one."""
        try:
            data = self._connection.recv(_READ_BYTES)
        except BlockingIOError:
            return
        except OSError:  # reset, or no acknowledgement: as good as closed
            data = b""
        *lines, self._unfinished = (self._unfinished + data).split(b"\n")
        self.is_closed = not data or len(self._unfinished) > MAX_LINE_BYTES
        for line in lines:
            try:
                message = json.loads(line)
            except ValueError:
                message = None
            if not isinstance(message, dict):
                self.is_closed = True  # not one of ours
                return
            yield message


def send(connection: socket.socket, message: Mapping[str, Any]) -> None:
    """Sends a message; a connection that is gone is noticed when it is read.

    Every message is so short that it does not wait for the other end to read.
    """
    with contextlib.suppress(OSError):
        connection.sendall(json.dumps(message).encode() + b"\n")


def keep_alive(connection: socket.socket) -> None:
    """Lets the kernel close a connection whose other end has not answered for half a minute."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 10)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 5)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 4)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 30_000)
