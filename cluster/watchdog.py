"""Nothing outlives the launcher, not even when it is killed.

The watchdog is a process of its own that reads from a pipe which process groups there are. When the
pipe closes, for whatever reason, it kills those that are left. It is started as a file, not forked:
whoever kills the launcher by its command line then doesn't hit the watchdog as well.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys


class Watchdog:
    """The launcher's side of it: a context manager that lasts as long as the launcher."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", __file__],
            stdin=subprocess.PIPE,
            # A copy of the launcher's output would keep its reader waiting for more.
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # the terminal's signals are for the launcher
        )
        assert self._process.stdin is not None
        self._orders = self._process.stdin

    def watch(self, group: int) -> None:
        """Adds a process group; a new process may do so itself, between fork and exec."""
        os.write(self._orders.fileno(), b"+%d\n" % group)

    def forget(self, group: int) -> None:
        """Takes out a group that has ended, before its number can be another's."""
        os.write(self._orders.fileno(), b"-%d\n" % group)

    def __enter__(self) -> Watchdog:
        return self

    def __exit__(self, *_: object) -> None:
        self._orders.close()
        self._process.wait()


def _guard() -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    groups: set[int] = set()
    for order in sys.stdin:
        (groups.add if order[0] == "+" else groups.discard)(int(order[1:]))
    for group in groups:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(group, signal.SIGKILL)


if __name__ == "__main__":
    _guard()
