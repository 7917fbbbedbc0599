"""One worker's process: it leads a session of its own, and dies with the launcher."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from typing import IO

from cluster import policy
from cluster.hosts.keeper import read_stat
from cluster.launching.watchdog import Watchdog

_PR_SET_PDEATHSIG = 1  # <linux/prctl.h>
_libc = ctypes.CDLL(None)


class WorkerProcess:
    """A running worker, or a spare for one.

    Create it in the main thread: the kernel kills the process when the creating thread ends.

    Args:
        name: the worker's name, for people.
        command: the program and its arguments.
        environ: all environment variables of the process.
        watchdog: kills the process group if the launcher dies.
        has_input: whether standard input is a pipe, for ``write_line``; by default it is empty.
        output: the descriptor of a file for standard output and error; by default they are pipes.

    Raises:
        OSError: if the process can't be started.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        environ: Mapping[str, str],
        watchdog: Watchdog,
        *,
        has_input: bool = False,
        output: int = subprocess.PIPE,
    ) -> None:
        self.name = name
        self.loss = ""
        self._watchdog = watchdog

        def before_exec() -> None:
            # The kernel kills the worker at once, and the watchdog kills the worker's children too.
            # The worker adds itself: the launcher may die before it could do that.
            _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
            watchdog.add(os.getpid())

        self._popen = subprocess.Popen(
            command,
            bufsize=0,
            env=dict(environ),
            stdin=subprocess.PIPE if has_input else subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
            preexec_fn=before_exec,
        )

    @property
    def stdout(self) -> IO[bytes]:
        """The readable end of its standard output."""
        assert self._popen.stdout is not None
        return self._popen.stdout

    @property
    def stderr(self) -> IO[bytes]:
        """The readable end of its standard error."""
        assert self._popen.stderr is not None
        return self._popen.stderr

    def write_line(self, line: str) -> bool:
        """Writes a line to its standard input and closes it; returns False if it has ended."""
        assert self._popen.stdin is not None
        with contextlib.suppress(BrokenPipeError), self._popen.stdin as stdin:
            if self.poll() is None:
                stdin.write(line.encode() + b"\n")
                return True
        return False

    def poll(self) -> int | None:
        """Returns the exit code, or minus the signal that killed it; None while it runs.

        The rest of its process group is killed before the kernel may forget the ended process.
        Until then no other process can get the number of the group.
        """
        if self._popen.returncode is None:
            options = os.WEXITED | os.WNOHANG | os.WNOWAIT
            if os.waitid(os.P_PID, self._popen.pid, options) is None:
                return None
            self._kill_group()
            self._watchdog.remove(self._popen.pid)
        return self._popen.wait()

    def sample(self) -> policy.Sample | None:
        """Returns what the kernel reports about the process now; None if it has ended."""
        stat = read_stat(self._popen.pid)
        return None if stat is None else policy.Sample(*stat)

    def signal(self, number: signal.Signals) -> None:
        """Sends a signal to the process alone, but SIGKILL to its whole process group."""
        if self._popen.returncode is None:
            if number == signal.SIGKILL:
                self._kill_group()
            else:
                os.kill(self._popen.pid, number)

    def _kill_group(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._popen.pid, signal.SIGKILL)
