"""Signals as events that ``select`` can wait for, together with the workers' output."""

from __future__ import annotations

import signal
import socket
import time
from typing import Final

# Some parents (coreutils' timeout, for one) signal the process and then its group, to be sure.
DUPLICATE_S: Final = 0.3
STOP_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Signals:
    """Receives the signals that stop the launcher; the end of a child process wakes it as well.

    A context manager, for the main thread. ``select`` reports it as readable after each signal.
    """

    def __init__(self) -> None:
        self._reader, self._writer = socket.socketpair()
        for end in (self._reader, self._writer):
            end.setblocking(False)
        self._last_received_s = float("-inf")
        self._previous_handlers = {}
        for number in (*STOP_SIGNALS, signal.SIGCHLD):
            if number != signal.SIGCHLD and signal.getsignal(number) == signal.SIG_IGN:
                continue  # as under nohup
            self._previous_handlers[number] = signal.signal(number, lambda *_: None)
        signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)

    def fileno(self) -> int:
        """Returns the descriptor, for ``select``."""
        return self._reader.fileno()

    def receive(self) -> list[signal.Signals]:
        """Returns the stop signal that has arrived since the last call, if any.

        Several signals within ``DUPLICATE_S`` count as one. SIGHUP (a lost terminal) is returned
        as SIGTERM.
        """
        try:
            numbers = self._reader.recv(4096)
        except BlockingIOError:
            return []
        now_s = time.monotonic()
        received = [signal.Signals(number) for number in numbers if number in STOP_SIGNALS]
        if not received or now_s - self._last_received_s < DUPLICATE_S:
            return []
        self._last_received_s = now_s
        return [signal.SIGTERM if received[0] == signal.SIGHUP else received[0]]

    def __enter__(self) -> Signals:
        return self

    def __exit__(self, *_: object) -> None:
        signal.set_wakeup_fd(-1)
        for number, handler in self._previous_handlers.items():
            signal.signal(number, handler)
        self._reader.close()
        self._writer.close()
