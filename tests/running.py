"""Real processes for tests: a clean environment, a hard limit, and nothing left behind.

A process started here leads a session of its own. It is killed with its whole session when the
``with`` block ends, when its time is up, and (by the kernel) when the test run itself dies. Its
output is kept, and shown with the failure if it did not end as expected.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True)


def free_port() -> int:
    """A TCP port of the loopback interface that nobody listened on a moment ago."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def wait_until(condition: Callable[[], Any], timeout_s: float, what: str) -> Any:
    """Polls ``condition`` until it is true and returns its value; fails after ``timeout_s``."""
    deadline = time.monotonic() + timeout_s
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {timeout_s} s in vain until {what}")
        time.sleep(0.02)


def clean_environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment of a user's shell, without what tests or TensorFlow may have put there."""
    dropped = ("TF_", "KERAS_", "CUDA_", "XLA_", "PYTEST_", "GRPC_", "TFDP_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(dropped)}
    return kept | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"} | dict(extra or {})


def _in_child() -> None:
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # a test run in the background ignores it


class Process:
    """A child process with a hard limit; use it in a ``with`` block.

    Args:
        command: the program and its arguments; ``python`` stands for this interpreter.
        env: variables on top of a clean environment.
        cwd: working directory, by default the project's root.
        limit_s: the process is killed after this many seconds, whatever it does.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        limit_s: float = 120,
    ) -> None:
        command = [sys.executable if part == "python" else part for part in command]
        self.command = command
        self.deadline = time.monotonic() + limit_s
        self._log = tempfile.NamedTemporaryFile(prefix="tfdp-test-", suffix=".log")  # noqa: SIM115
        self.popen = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            env=clean_environment(env),
            cwd=cwd or ROOT,
            start_new_session=True,
            preexec_fn=_in_child,
        )

    @property
    def pid(self) -> int:
        return self.popen.pid

    @property
    def output(self) -> str:
        """Everything that it has printed so far, standard error included."""
        return Path(self._log.name).read_text(errors="replace")

    def signal(self, number: int) -> None:
        self.popen.send_signal(number)

    def wait(self, expect: int | None = 0) -> str:
        """Waits for the end, fails unless the exit code is ``expect``, and returns the output."""
        try:
            code = self.popen.wait(timeout=max(0.0, self.deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"{self.command} did not end in time:\n{self.tail()}") from None
        if expect is not None and code != expect:
            raise AssertionError(f"{self.command} ended with {code}, not {expect}:\n{self.tail()}")
        return self.output

    def wait_for(self, pattern: str) -> re.Match[str]:
        """Waits until the output matches ``pattern``; fails if the process ends before."""

        def found() -> re.Match[str] | None:
            ended = self.popen.poll() is not None
            match = re.search(pattern, self.output)
            if match is None and ended:
                raise AssertionError(f"{self.command} ended without {pattern!r}:\n{self.tail()}")
            return match

        try:
            limit_s = max(0.0, self.deadline - time.monotonic())
            match: re.Match[str] = wait_until(found, limit_s, f"{pattern!r} is printed")
            return match
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.tail()}") from None

    def tail(self, lines: int = 60) -> str:
        return "\n".join(self.output.splitlines()[-lines:])

    def kill(self) -> None:
        """Kills the process and whatever of its session is left, and waits for it."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.popen.pid, signal.SIGKILL)
        self.popen.wait()

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        self._log.close()


def run(command: Sequence[str], expect: int | None = 0, **options: Any) -> str:
    """Runs ``command`` to its end, fails unless it exits with ``expect``; returns its output."""
    with Process(command, **options) as process:
        return process.wait(expect)
