"""A process that ends its parent where none of the parent's own threads can.

A library that holds Python's lock stops all Python code of a process, its signal handlers too;
TensorFlow does so while it starts. Then only another process can tell people what happened, and
only a signal of the kernel can end the process. So a guard watches the connections to the other
workers and a time limit, which the parent may postpone. If a connection breaks or the time is up,
it prints one line in its parent's place and ends the parent by SIGUSR1: to a shell, that is
128 + SIGUSR1 = ``TRY_AGAIN``.

The guard is this file, started as a program: it needs the standard library only, and is there after
20 ms. It reads nothing from the connections, and it dies with its parent, so that its copies of
them don't keep them open.
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any, Final

GRACE_S: Final = 2.0  # for the parent to end by itself
GREETING_TIMEOUT_S: Final = 2.0  # for TensorFlow of another worker
LOOK_EVERY_S: Final = 0.5
_MAX_ASKED: Final = 100  # other workers
_READ_BYTES: Final = 1 << 20  # heartbeats of days, and the longest message of ``channel``
_BREAK: Final = select.POLLRDHUP | select.POLLHUP | select.POLLERR
_STDIN, _STDERR = 0, 2
_PR_SET_PDEATHSIG: Final = 1  # <linux/prctl.h>
_FOR_PARENT: Final = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2")


class Guard:
    """The parent's end: a context manager. The guard watches inside the block.

    In a thread other than the main thread, Python can't reset a handler of SIGUSR1; and all threads
    may block the signal. If the parent survives SIGUSR1, SIGKILL follows after ``GRACE_S``.

    Args:
        timeout_s: the time limit.
        message: the line to print when the time is up. ``{silent}`` in it stands for the workers
            that don't answer at their addresses.
        prefix: the beginning of each line.
        terminal: the descriptor to print to.
        log: the descriptor of a file that gets the line too, and then this process's Python stacks;
            None if there is no such file.
        connections: name of the other worker by the descriptor of the connection to it.
        addresses: ``(host, port)`` of the other workers, by their names.
        lost_while: what the parent does meanwhile, for the line about a broken connection.
        patience_s: a break ends the parent if it has not postponed the limit for so long; a parent
            whose Python code runs learns of the break by itself.
    """

    def __init__(
        self,
        timeout_s: float,
        message: str,
        *,
        prefix: str,
        terminal: int,
        log: int | None,
        connections: Mapping[int, str] | None = None,
        addresses: Mapping[str, tuple[str, int]] | None = None,
        lost_while: str,
        patience_s: float = 0.0,
    ) -> None:
        self._terminal = terminal
        self._logs = [] if log is None else [log]
        self._connections = connections or {}
        self._first = {
            "parent": os.getpid(),
            "prefix": prefix,
            "outputs": [_STDERR, *self._logs],
            "connections": list(self._connections.items()),
            "addresses": list((addresses or {}).items()),
            "lost_while": lost_while,
            "patience_s": patience_s,
            "timeout_s": timeout_s,
            "message": message,
        }

    def __enter__(self) -> Guard:
        with contextlib.ExitStack() as stack:
            stack.enter_context(_ended_by_signal(self._logs))
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", __file__],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=self._terminal,
                pass_fds=[*self._logs, *self._connections],
            )
            self._stack = stack.pop_all()
        self._tell(self._first)
        assert self._process.stdin is not None
        os.set_blocking(self._process.stdin.fileno(), False)  # a guard may be stopped
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._stack.close()

    def postpone(self, timeout_s: float, message: str) -> None:
        """Sets the time limit, from now on, and the line to print then."""
        self._tell({"timeout_s": timeout_s, "message": message})

    def _tell(self, message: dict[str, Any]) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError, BlockingIOError):
            os.write(self._process.stdin.fileno(), json.dumps(message).encode() + b"\n")


@contextlib.contextmanager
def _ended_by_signal(logs: list[int]) -> Iterator[None]:
    """Inside the block, SIGUSR1 ends this process, after its stacks were written to ``logs``."""
    handler = signal.getsignal(signal.SIGUSR1)
    is_main_thread = threading.current_thread() is threading.main_thread()
    resets_handler = is_main_thread and handler is not None  # one of C can't be put back
    if resets_handler:
        signal.signal(signal.SIGUSR1, signal.SIG_DFL)
    for log in logs:
        faulthandler.register(signal.SIGUSR1, log, chain=True)
    try:
        yield
    finally:
        if logs:
            faulthandler.unregister(signal.SIGUSR1)
        if resets_handler:
            signal.signal(signal.SIGUSR1, handler)


class _Watch:
    """The guard's end, which reads messages of the parent from standard input."""

    def __init__(self) -> None:
        self._unread = b""
        first, *later = self._messages() or [{}]
        if not first:
            sys.exit()  # the parent has ended already
        self._parent: int = first["parent"]
        self._prefix: str = first["prefix"]
        self._outputs: list[int] = first["outputs"]
        self._addresses: list[tuple[str, tuple[str, int]]] = first["addresses"]
        self._names: dict[int, str] = dict(first["connections"])
        self._lost_while: str = first["lost_while"]
        self._patience_s: float = first["patience_s"]
        self._silent_s = 0.0  # since the parent's last message
        # What may end the parent: the seconds until then, and the line to print.
        self._ends: list[tuple[float, str]] = []
        self._postpone([first, *later][-1])

    def run(self) -> None:
        """Returns when the parent has closed the pipe, or is to end."""
        poll = select.poll()
        poll.register(_STDIN, select.POLLIN)
        for descriptor in self._names:
            poll.register(descriptor, select.POLLIN if self._patience_s == 0 else _BREAK)
        last_look_s = time.monotonic()
        while min(self._ends)[0] > 0:
            for descriptor, event in poll.poll(1000 * min(LOOK_EVERY_S, min(self._ends)[0])):
                if descriptor == _STDIN:
                    messages = self._messages()
                    if not messages:
                        return
                    self._postpone(messages[-1])
                elif self._is_end(descriptor, event):
                    poll.unregister(descriptor)
                else:
                    poll.modify(descriptor, _BREAK)  # what has arrived stays there
            now_s = time.monotonic()
            # If more time has passed, this process was frozen, and probably its parent as well.
            passed_s = min(now_s - last_look_s, 2 * LOOK_EVERY_S)
            last_look_s = now_s
            if not self._parent_is_stopped():
                self._ends = [(left_s - passed_s, line) for left_s, line in self._ends]
                self._silent_s += passed_s
        line = min(self._ends)[1]
        self._end_parent(line.replace("{silent}", self._silent()) if "{silent}" in line else line)

    def _messages(self) -> list[dict[str, Any]]:
        """Returns the messages that have arrived, after waiting for one; none at the end."""
        lines: list[bytes] = []
        while not lines:
            data = os.read(_STDIN, _READ_BYTES)
            if not data:
                break
            *lines, self._unread = (self._unread + data).split(b"\n")
        return [json.loads(line) for line in lines]

    def _postpone(self, message: dict[str, Any]) -> None:
        # Python code of the parent runs: it notices broken connections by itself.
        self._ends = [(message["timeout_s"], message["message"])]
        self._silent_s = 0.0

    def _parent_is_stopped(self) -> bool:
        """Returns whether a signal or a debugger has stopped the parent."""
        with contextlib.suppress(OSError), open(f"/proc/{self._parent}/stat") as file:  # noqa: PTH123
            return file.read().rpartition(") ")[2][:1] in ("T", "t")
        return False

    def _is_end(self, descriptor: int, event: int) -> bool:
        """Looks at a connection that has broken, or at which something has arrived."""
        name = self._names[descriptor]
        reason = "its process has ended"
        try:
            with socket.socket(fileno=os.dup(descriptor)) as connection:
                data = connection.recv(_READ_BYTES, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except ConnectionResetError:
            data = b""
        except OSError as error:
            data, reason = b"", (error.strerror or str(error)).lower()
        last_message = _last_message(data)
        if data and not last_message and not event & _BREAK:
            return False  # heartbeats
        line = f"{name} was lost while {self._lost_while}: {reason}"
        left_s = self._patience_s - self._silent_s
        if last_message and self._patience_s == 0:
            left_s = GRACE_S  # the parent may be about to run, and to read it by itself
        if "goodbye" not in last_message or self._patience_s == 0:
            self._ends.append((left_s, last_message.get("reason", line)))
        return True

    def _silent(self) -> str:
        """Returns a clause on the workers that don't answer at their addresses."""
        asked = self._addresses[:_MAX_ASKED]
        answered: set[str] = set()

        def ask(name: str, address: tuple[str, int]) -> None:
            with (
                contextlib.suppress(OSError),
                socket.create_connection(address, GREETING_TIMEOUT_S) as probe,
            ):
                if probe.recv(1):
                    answered.add(name)

        threads = [threading.Thread(target=ask, args=each, daemon=True) for each in asked]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(2 * GREETING_TIMEOUT_S)
        silent = [name for name, _ in asked if name not in answered]
        if not silent:
            return "the other workers answer at their addresses"
        does = "does not answer at its address" if len(silent) == 1 else "don't answer"
        return f"{', '.join(silent)} {does}"

    def _end_parent(self, line: str) -> None:
        for descriptor in self._outputs:
            if select.select([], [descriptor], [], GRACE_S)[1]:  # else nobody reads it
                with contextlib.suppress(OSError):
                    os.write(descriptor, f"{self._prefix}{line}\n".encode())
        for number in (signal.SIGUSR1, signal.SIGKILL):
            if os.getppid() == self._parent:
                os.kill(self._parent, number)
                time.sleep(GRACE_S)  # this process ends with its parent


def _last_message(data: bytes) -> dict[str, Any]:
    """Returns the first message in ``data`` that ends a run or says goodbye; empty if none does."""
    for line in data.splitlines():
        with contextlib.suppress(ValueError):
            message = json.loads(line)
            if isinstance(message, dict) and {"end", "goodbye"} & message.keys():
                return message
    return {}


def _main() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    for name in _FOR_PARENT:
        signal.signal(getattr(signal, name), signal.SIG_IGN)
    _Watch().run()


if __name__ == "__main__":
    _main()
