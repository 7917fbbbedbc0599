"""What the tasks of a Slurm step report about themselves: that they run, and how they end."""

from __future__ import annotations

import dataclasses
import hmac
import secrets
import selectors
import signal
import socket
from typing import Any

from cluster import policy
from cluster.slurm import messages
from cluster.slurm.messages import Hello


@dataclasses.dataclass
class Task:
    """A task that has said hello.

    Args:
        hello: what it said.
        connection: to it; closed when it has ended.
        is_running: whether it has neither ended nor been lost.
        code: its exit code, or minus the signal that killed it; None while it runs, or if it is
            lost.
    """

    hello: Hello
    connection: socket.socket
    is_running: bool = True
    code: int | None = None

    @property
    def end(self) -> policy.Exit:
        """Its end, for the policy."""
        name = f"worker {self.hello.rank} ({self.hello.node})"
        if self.code is None:
            return policy.Exit(name, -signal.SIGKILL, "was lost")
        return policy.Exit(name, self.code)


class Reports:
    """Listens to tasks: a context manager, for the host on which srun runs.

    Sockets are registered with ``selector``. Each has a function without arguments as its data, to
    be called when the socket is readable.

    Attributes:
        tasks: all tasks that have said hello, by rank.
        signalled: the first signal that a task got from Slurm, if any.
    """

    def __init__(self, selector: selectors.BaseSelector) -> None:
        self.tasks: dict[int, Task] = {}
        self.signalled: signal.Signals | None = None
        self._selector = selector
        self._token = secrets.token_hex(16)
        self._ended: list[Task] = []  # since the last pop
        self._sent: list[signal.Signals] = []
        self._connections: dict[socket.socket, Task | None] = {}  # None before hello
        # Tasks come from all nodes of the job.
        has_ipv6 = socket.has_dualstack_ipv6()
        family = socket.AF_INET6 if has_ipv6 else socket.AF_INET
        self._listener = socket.create_server(
            ("", 0), family=family, backlog=1024, dualstack_ipv6=has_ipv6
        )
        self._listener.setblocking(False)
        selector.register(self._listener, selectors.EVENT_READ, self._accept)

    def __enter__(self) -> Reports:
        return self

    def __exit__(self, *_: object) -> None:
        for connection in list(self._connections):
            self._close(connection)
        self._selector.unregister(self._listener)
        self._listener.close()

    @property
    def environ(self) -> dict[str, str]:
        """Variables that tasks need to report."""
        port = self._listener.getsockname()[1]
        return {messages.PORT_VARIABLE: str(port), messages.TOKEN_VARIABLE: self._token}

    @property
    def size(self) -> int | None:
        """Number of tasks of the step; None before the first has said hello."""
        return next((task.hello.size for task in self.tasks.values()), None)

    @property
    def running(self) -> list[Task]:
        """The tasks that run, by rank."""
        return [task for _, task in sorted(self.tasks.items()) if task.is_running]

    @property
    def have_all_ended(self) -> bool:
        """Whether every task of the step has ended or been lost."""
        return len(self.tasks) == self.size and not self.running

    def pop_ended(self) -> list[Task]:
        """Returns the tasks that have ended or been lost since the last call, in order of time."""
        ended, self._ended = self._ended, []
        return ended

    def signal(self, number: signal.Signals) -> None:
        """Sends a signal to the commands of all tasks, also of those that have yet to connect."""
        self._sent.append(number)
        for task in self.running:
            messages.send(task.connection, {"signal": number})

    def _accept(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except OSError:
            return  # it is gone already
        connection.settimeout(messages.SEND_TIMEOUT_S)
        messages.keep_alive(connection)
        self._connections[connection] = None
        lines = messages.Lines(connection)
        self._selector.register(
            connection, selectors.EVENT_READ, lambda: self._read(connection, lines)
        )

    def _read(self, connection: socket.socket, lines: messages.Lines) -> None:
        for message in lines.read():
            task = self._connections[connection]
            if task is None:
                lines.is_closed |= not self._add(connection, message)
            elif "code" in message:
                task.code = int(message["code"])
                lines.is_closed = True
            elif self.signalled is None:
                self.signalled = signal.Signals(message["signal"])
            if lines.is_closed:
                break
        if lines.is_closed:
            self._close(connection)

    def _add(self, connection: socket.socket, message: dict[str, Any]) -> bool:
        """Adds a task that says hello; returns False if it is none of this step."""
        token = str(message.get("token"))
        if not hmac.compare_digest(token.encode(), self._token.encode()):
            return False
        hello = Hello(**message)
        self.tasks[hello.rank] = self._connections[connection] = Task(hello, connection)
        for number in self._sent:
            messages.send(connection, {"signal": number})
        return True

    def _close(self, connection: socket.socket) -> None:
        task = self._connections.pop(connection)
        self._selector.unregister(connection)
        connection.close()
        if task is not None:
            task.is_running = False
            self._ended.append(task)
