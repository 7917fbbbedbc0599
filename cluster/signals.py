"""Signals as something to wait for, beside the workers' output."""

from __future__ import annotations

import signal
import socket
import time
from typing import Final

# Some parents (coreutils' timeout, for one) signal the process and then its group, to be sure.
ECHO_S: Final = 0.3
STOP: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Signals:
    """Collects the signals that tell the launcher to stop; a child's end wakes it as well.

    A context manager, for the main thread. It is ready to read (``select``) when there is news.
    """

    def __init__(self) -> None:
        self._receive, send = socket.socketpair()
        self._send = send
        for end in (self._receive, send):
            end.setblocking(False)
        self._last_s = float("-inf")
        self._before = {}
        for number in (*STOP, signal.SIGCHLD):
            if number != signal.SIGCHLD and signal.getsignal(number) == signal.SIG_IGN:
                continue  # as under nohup
            self._before[number] = signal.signal(number, lambda *_: None)
        signal.set_wakeup_fd(send.fileno(), warn_on_full_buffer=False)

    def fileno(self) -> int:
        """What ``select`` waits for."""
        return self._receive.fileno()

    def receive(self) -> list[signal.Signals]:
        """The signal to stop that has come, if one has; those within ``ECHO_S`` count as one.

        To workers, a lost terminal (SIGHUP) is SIGTERM.
        """
        try:
            numbers = self._receive.recv(4096)
        except BlockingIOError:
            return []
        now_s = time.monotonic()
        told = [signal.Signals(number) for number in numbers if number in STOP]
        if not told or now_s - self._last_s < ECHO_S:
            return []
        self._last_s = now_s
        return [signal.SIGTERM if told[0] == signal.SIGHUP else told[0]]

    def __enter__(self) -> Signals:
        return self

    def __exit__(self, *_: object) -> None:
        signal.set_wakeup_fd(-1)
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._receive.close()
        self._send.close()
