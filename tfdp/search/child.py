"""A child process of the coordinator that is not a trial: it runs to its end, or to a limit."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from cluster.launching.process import WorkerProcess
from cluster.launching.watchdog import Watchdog
from tfdp.errors import TrainingError

STOP_TIMEOUT_S = 30.0  # to end after a stop signal
_LOOK_EVERY_S = 1.0

Wait = Callable[[float], Sequence[signal.Signals]]


class SearchStopped(TrainingError):  # noqa: N818
    """A signal ended the search; all trials are saved.

    Args:
        number: the signal.
    """

    def __init__(self, number: signal.Signals) -> None:
        super().__init__(f"{number.name} ended the search; the same command goes on")
        self.number = number


def run(
    name: str,
    command: Sequence[str],
    *,
    environ: Mapping[str, str],
    output: Path,
    timeout_s: float,
    wait: Wait,
) -> int:
    """Runs a command, and returns its exit code, or minus the signal that killed it.

    Args:
        name: of the process, for people.
        command: the program and its arguments.
        environ: variables on top of this process's.
        output: file to which its standard output and error are added.
        timeout_s: after so many seconds it is killed.
        wait: waits for a time in seconds, or for an event; returns signals to stop.

    Raises:
        SearchStopped: if a signal came; it was passed on, and the process has ended.
        TrainingError: if the process can't be started, or was killed after ``timeout_s``.
    """
    with Watchdog() as watchdog, output.open("ab") as file:
        try:
            full = {"PYTHONUNBUFFERED": "1", **os.environ, **environ}
            process = WorkerProcess(name, command, full, watchdog, output=file.fileno())
        except OSError as error:
            raise TrainingError(f"{name} can't be started: {error}") from error
        try:
            until_s = time.monotonic() + timeout_s
            received: signal.Signals | None = None
            while (code := process.poll()) is None:
                if time.monotonic() > until_s:
                    break
                if stop_signals := wait(_LOOK_EVERY_S):
                    is_first, received = received is None, received or stop_signals[0]
                    process.signal(received)
                    until_s = time.monotonic() + (STOP_TIMEOUT_S if is_first else 0.0)
        finally:
            process.signal(signal.SIGKILL)
    if received is not None:
        raise SearchStopped(received)
    if code is None:
        raise TrainingError(f"{name} has not ended after {timeout_s:g} s: see {output}")
    return code
