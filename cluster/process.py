"""One worker: a process that leads a session of its own, and dies with the launcher."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from typing import IO

from cluster.watchdog import Watchdog

_PR_SET_PDEATHSIG = 1  # <linux/prctl.h>
_libc = ctypes.CDLL(None)


class Worker:
    """A running worker.

    Make it in the main thread: to the kernel, that thread is the launcher that it dies with.

    Args:
        name: for people.
        command: the program and its arguments.
        environ: all of its environment.
        watchdog: told of its process group.
        hears: whether its standard input is ours to write to (``tell``); else it is empty.

    Raises:
        OSError: if it can't be started.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        environ: Mapping[str, str],
        watchdog: Watchdog,
        *,
        hears: bool = False,
    ) -> None:
        self.name = name
        self._guardian = watchdog

        def before_exec() -> None:
            # The kernel is there at once and takes the worker; the watchdog takes its children
            # as well. The worker reports itself: the launcher may be dead before it could.
            _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
            watchdog.watch(os.getpid())

        self._popen = subprocess.Popen(
            command,
            bufsize=0,
            env=dict(environ),
            stdin=subprocess.PIPE if hears else subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
            preexec_fn=before_exec,
        )

    @property
    def stdout(self) -> IO[bytes]:
        """The end to read from of what it prints."""
        assert self._popen.stdout is not None
        return self._popen.stdout

    @property
    def stderr(self) -> IO[bytes]:
        """The end to read from of its standard error."""
        assert self._popen.stderr is not None
        return self._popen.stderr

    def tell(self, line: str) -> bool:
        """Writes the only line of its standard input; returns whether there is anyone to read."""
        assert self._popen.stdin is not None
        with contextlib.suppress(BrokenPipeError), self._popen.stdin as stdin:
            if self.poll() is None:
                stdin.write(line.encode() + b"\n")
                return True
        return False

    def poll(self) -> int | None:
        """Its exit code, or minus the signal that killed it; None while it runs.

        What it has left behind is killed before the kernel is told that its end was noticed: until
        then nobody else can get the number of its process group.
        """
        if self._popen.returncode is None:
            how = os.WEXITED | os.WNOHANG | os.WNOWAIT
            if os.waitid(os.P_PID, self._popen.pid, how) is None:
                return None
            self._kill_group()
            self._guardian.forget(self._popen.pid)
        return self._popen.wait()

    def signal(self, number: signal.Signals) -> None:
        """Sends a signal to the process itself; SIGKILL to all that it has started, too."""
        if self._popen.returncode is None:
            if number == signal.SIGKILL:
                self._kill_group()
            else:
                os.kill(self._popen.pid, number)

    def _kill_group(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._popen.pid, signal.SIGKILL)
