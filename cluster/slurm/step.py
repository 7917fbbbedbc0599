"""One step of a Slurm job: srun, with a task for each worker."""

from __future__ import annotations

import collections
import ctypes
import dataclasses
import math
import os
import selectors
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from cluster import policy
from cluster.launching.shutdown import Shutdown
from cluster.launching.signals import Signals
from cluster.slurm.reports import Reports

# After all tasks have ended, srun still waits for nodes that don't answer, until Slurm gives them
# up: SlurmdTimeout, 5 minutes by default.
SRUN_TIMEOUT_S: Final = 10.0
_PR_SET_PDEATHSIG = 1  # <linux/prctl.h>
_libc = ctypes.CDLL(None)


@dataclasses.dataclass(frozen=True)
class StepEnd:
    """How a step ended.

    Args:
        exits: of its tasks, in order of time, without those of tasks that were stopped because
            another one failed. Empty if no task started.
        stop_signal: the first signal to stop that this program or a task got, if any.
        tasks_on: number of tasks that started, by the names of their nodes.
        has_started: whether all tasks started.
        dead_nodes: names of nodes that have not ended their tasks.
        is_srun_lost: whether srun had to be killed; to Slurm, the step may still be there.
    """

    exits: Sequence[policy.Exit]
    stop_signal: signal.Signals | None
    tasks_on: Mapping[str, int]
    has_started: bool
    dead_nodes: frozenset[str]
    is_srun_lost: bool


class Step:
    """Runs srun once.

    Args:
        command: srun with its flags, and the tasks' command.
        signals: receives this program's signals.
        is_job_running: asks Slurm whether the job goes on; None if Slurm does not answer.
        log: prints a line for people.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        signals: Signals,
        is_job_running: Callable[[], bool | None],
        log: Callable[[str], None],
    ) -> None:
        self._command = command
        self._signals = signals
        self._is_job_running = is_job_running
        self._log = log
        self._stop_signals: list[signal.Signals] = []  # received so far
        self._shutdown = Shutdown()
        self._exits: list[policy.Exit] = []
        self._srun_due_s = math.inf  # the monotonic time at which srun is killed
        self._has_given_up = False  # whether that was necessary

    def run(self) -> StepEnd:
        """Runs the step to its end.

        Raises:
            OSError: if srun can't be started.
        """
        with selectors.DefaultSelector() as selector, Reports(selector) as reports:
            selector.register(self._signals, selectors.EVENT_READ, self._receive)
            srun = self._start(reports)
            try:
                self._watch(srun, selector, reports)
            finally:
                srun.kill()
                srun.wait()
            self._kill_left(selector, reports)
            return self._end(srun.returncode, reports)

    def _start(self, reports: Reports) -> subprocess.Popen[bytes]:
        # Unbuffered, so that the last lines of a killed worker are printed too.
        environ = {"PYTHONUNBUFFERED": "1", **os.environ, **reports.environ}
        if cpus := os.environ.get("SLURM_CPUS_PER_TASK"):
            environ.setdefault("SRUN_CPUS_PER_TASK", cpus)  # srun ignores the other since 22.05
        return subprocess.Popen(
            self._command,
            stdin=subprocess.DEVNULL,
            env=environ,
            start_new_session=True,  # the terminal's signals are for this program
            preexec_fn=lambda: _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL),
        )

    def _watch(
        self, srun: subprocess.Popen[bytes], selector: selectors.BaseSelector, reports: Reports
    ) -> None:
        """Watches the step until srun has ended."""
        handled = 0  # of the stop signals
        while srun.poll() is None:
            if (number := self._shutdown.pop_due()) is not None:
                self._send(number, reports)
            if reports.have_all_ended:
                self._kill_srun_in(SRUN_TIMEOUT_S)
            if time.monotonic() >= self._srun_due_s:
                self._has_given_up = True
                return
            due_s = min(self._srun_due_s, self._shutdown.due_s or math.inf)
            _wait(selector, None if due_s == math.inf else due_s - time.monotonic())
            if len(self._stop_signals) > handled:
                self._stop(reports)
                handled = len(self._stop_signals)
            elif reports.signalled is not None and not handled:
                self._shutdown.leave(f"Slurm has sent {reports.signalled.name}")
            self._add_exits(reports)

    def _kill_left(self, selector: selectors.BaseSelector, reports: Reports) -> None:
        """Kills tasks that srun has left behind, and reads what all of them have reported."""
        if reports.running:
            reports.signal(signal.SIGKILL)
        until_s = time.monotonic() + (0.0 if self._has_given_up else SRUN_TIMEOUT_S)
        while _wait(selector, 0) or (reports.running and time.monotonic() < until_s):
            time.sleep(0.01)
        self._add_exits(reports)

    def _receive(self) -> None:
        self._stop_signals += self._signals.receive()

    def _stop(self, reports: Reports) -> None:
        """Passes a stop signal on, unless Slurm itself has sent it to the tasks too."""
        if not reports.tasks:
            self._kill_srun_in(0)
        elif (reports.signalled is not None and len(self._stop_signals) == 1) or (
            self._is_job_running() is False
        ):
            self._shutdown.leave(f"Slurm has sent {self._stop_signals[0].name}")
        else:
            self._shutdown.plan_for_signals(self._stop_signals, math.inf)

    def _send(self, number: signal.Signals, reports: Reports) -> None:
        if running := [str(task.hello.rank) for task in reports.running]:
            names = f"worker {', '.join(running)}"
            self._log(f"{self._shutdown.reason}: sending {number.name} to {names}")
        reports.signal(number)
        if number == signal.SIGKILL:
            self._kill_srun_in(SRUN_TIMEOUT_S)

    def _kill_srun_in(self, timeout_s: float) -> None:
        self._srun_due_s = min(self._srun_due_s, time.monotonic() + timeout_s)

    def _add_exits(self, reports: Reports) -> None:
        """Takes note of the tasks that have ended since the last call."""
        for task in reports.pop_ended():
            if self._shutdown.is_exit_counted:
                self._exits.append(task.end)
                self._shutdown.plan_for_exit(task.end)

    def _end(self, srun_code: int, reports: Reports) -> StepEnd:
        tasks = reports.tasks.values()
        dead = [t for t in tasks if t.is_running or (self._has_given_up and t.code is None)]
        exits = list(self._exits)
        if self._shutdown.is_exit_counted:
            exits += [task.end for task in reports.running]
            missing = set(range(reports.size or 0)) - reports.tasks.keys()
            exits += [
                policy.Exit(f"worker {rank}", -signal.SIGKILL, "has not started")
                for rank in sorted(missing)
            ]
        stop_signals = [*self._stop_signals, *filter(None, [reports.signalled])]
        return StepEnd(
            exits=exits,
            stop_signal=stop_signals[0] if stop_signals else None,
            tasks_on=collections.Counter(task.hello.node for task in tasks),
            has_started=len(tasks) == reports.size,
            dead_nodes=frozenset(task.hello.node for task in dead),
            is_srun_lost=srun_code < 0,
        )


def _wait(selector: selectors.BaseSelector, timeout_s: float | None) -> bool:
    """Waits until something has happened and takes note of it; returns False after the time."""
    events = selector.select(timeout_s)
    for key, _ in events:
        key.data()
    return bool(events)
