"""A process that kills all processes of the launcher after the launcher has ended.

The watchdog reads from a pipe which process groups exist. When the pipe closes, for any reason, it
kills the groups that are left. It is started as a file of its own, not forked. So a command that
kills the launcher by its command line does not hit the watchdog as well.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys


class Watchdog:
    """The launcher's end: a context manager that lasts as long as the launcher.

    Args:
        is_orphan: whether the watchdog is no child of this process: other programs (Ray) kill a
            process together with its children.
    """

    def __init__(self, *, is_orphan: bool = False) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", __file__, *(["orphan"] if is_orphan else [])],
            stdin=subprocess.PIPE,
            # With a copy of the launcher's output, readers of that output would never see its end.
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # the terminal's signals are for the launcher
        )
        assert self._process.stdin is not None
        self._pipe = self._process.stdin
        if is_orphan:
            self._process.wait()  # its parent, which ends at once

    def add(self, group: int) -> None:
        """Adds a process group; a new process may add itself between fork and exec."""
        os.write(self._pipe.fileno(), b"+%d\n" % group)

    def remove(self, group: int) -> None:
        """Removes a group that has ended; call it before the kernel can reuse the number."""
        os.write(self._pipe.fileno(), b"-%d\n" % group)

    def __enter__(self) -> Watchdog:
        return self

    def __exit__(self, *_: object) -> None:
        self._pipe.close()
        self._process.wait()


def _watch() -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    groups: set[int] = set()
    for line in sys.stdin:
        (groups.add if line[0] == "+" else groups.discard)(int(line[1:]))
    for group in groups:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(group, signal.SIGKILL)


if __name__ == "__main__":
    if "orphan" in sys.argv and os.fork():
        os._exit(0)
    _watch()
