"""Runs the workers of a cluster on this machine; ``cluster.policy`` makes the decisions."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import time
from collections.abc import Sequence
from typing import IO

from cluster import exit_codes, policy, spec
from cluster.launching import spares
from cluster.launching.frozen import FrozenWorkers
from cluster.launching.printer import STDERR, STDOUT, Printer
from cluster.launching.process import WorkerProcess
from cluster.launching.signals import Signals
from cluster.launching.spares import Spares
from cluster.launching.watchdog import Watchdog


class Launcher:
    """Starts workers, watches them, stops them, and starts them again.

    Args:
        command: the program that every worker runs, and its arguments.
        workers: number of workers.
        max_restarts: number of restarts per hour of running.
        stop_timeout_s: time that workers have to save and end after a stop signal.
        has_spares: whether to keep a spare for each worker.
        printer: prints the workers' output.
        signals: receives the launcher's signals.
        watchdog: kills the workers if the launcher dies.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        workers: int,
        max_restarts: int,
        stop_timeout_s: float,
        has_spares: bool,
        printer: Printer,
        signals: Signals,
        watchdog: Watchdog,
    ) -> None:
        self._command = command
        self._workers = workers
        self._max_restarts = max_restarts
        self._stop_timeout_s = stop_timeout_s
        self._printer = printer
        self._signals = signals
        self._watchdog = watchdog
        self._stop_signals: list[signal.Signals] = []  # received so far
        self._spares = Spares(range(workers if has_spares else 0), self._start_spare)

    def run(self) -> int:
        """Runs the cluster, again after each loss as far as the policy allows.

        Returns:
            The launcher's exit code.
        """
        run_times_s: list[float] = []
        while True:
            decision = self._run_and_decide(run_times_s)
            self._printer.log(decision.reason)
            if decision.exit_code is None and self._is_stopped_within(decision.pause_s):
                decision = policy.stopped_by(self._stop_signals[0])
                self._printer.log(decision.reason)
            if decision.exit_code is not None:
                return decision.exit_code

    def _run_and_decide(self, run_times_s: list[float]) -> policy.Decision:
        """Runs the cluster once, adds how long that took to ``run_times_s``, and decides."""
        started_s = time.monotonic()
        try:
            exits = self._run_once()
        except OSError as error:
            return policy.Decision(exit_codes.FAILED, f"can't run the command: {error}")
        run_times_s.append(time.monotonic() - started_s)
        return policy.decide(
            exits,
            stop_signal=self._stop_signals[0] if self._stop_signals else None,
            run_times_s=run_times_s,
            max_restarts=self._max_restarts,
        )

    def _is_stopped_within(self, pause_s: float) -> bool:
        """Pauses before the next start; returns whether a stop signal has ended the pause."""
        until_s = time.monotonic() + pause_s
        while not self._stop_signals and time.monotonic() < until_s:
            self._wait(until_s)
        return bool(self._stop_signals)

    def _run_once(self) -> list[policy.Exit]:
        """Runs the cluster once, until every worker has ended.

        Returns:
            The workers' exits in order of time, without those of workers that the launcher stopped
            because another one had failed.
        """
        running: list[WorkerProcess] = []
        exits: list[policy.Exit] = []
        shutdown = _Shutdown()
        frozen = FrozenWorkers()
        try:
            self._start_workers(running)
            while running:
                if (number := shutdown.pop_due()) is not None:
                    self._send(number, running, shutdown.reason)
                if not shutdown.is_planned:
                    self._spares.start_if_due()
                for line in frozen.kill_if_due(running):
                    self._printer.log(line)
                due_s = shutdown.due_s if shutdown.is_planned else self._spares.due_s
                if self._wait(frozen.due_s if due_s is None else min(due_s, frozen.due_s)):
                    shutdown.plan_for_signals(self._stop_signals, self._stop_timeout_s)
                for worker_exit in self._remove_ended(running, frozen):
                    if shutdown.is_exit_counted:
                        exits.append(worker_exit)
                        shutdown.plan_for_exit(worker_exit)
        finally:
            for worker in running:
                worker.signal(signal.SIGKILL)
        return exits

    def _start_workers(self, running: list[WorkerProcess]) -> None:
        """Starts all workers and adds each to ``running`` at once."""
        ports = _free_ports(self._workers)
        for index in range(self._workers):
            cluster = spec.local(ports, index)
            tf_config = cluster.tf_config()
            worker = self._spares.activate(index, tf_config)
            if worker is None:
                environ = _environ(TF_CONFIG=tf_config)
                worker = WorkerProcess(cluster.name, self._command, environ, self._watchdog)
            running.append(worker)
            self._printer.add(worker.stdout, worker.name, index, STDOUT)
            self._printer.add(worker.stderr, worker.name, index, STDERR)
        self._spares.schedule()

    def _start_spare(self, index: int) -> WorkerProcess:
        environ = _environ(**{spares.VARIABLE: str(index)})
        name = spec.task_name("worker", index)
        return WorkerProcess(name, self._command, environ, self._watchdog, has_input=True)

    def _remove_ended(
        self, running: list[WorkerProcess], frozen: FrozenWorkers
    ) -> list[policy.Exit]:
        """Removes the workers that have ended from ``running``, and prints their last output."""
        exits = []
        for worker in list(running):
            code = worker.poll()
            if code is None and frozen.is_given_up(worker):
                code = -signal.SIGKILL
            if code is not None:
                running.remove(worker)
                self._printer.drain(worker.stdout)
                self._printer.drain(worker.stderr)
                exits.append(policy.Exit(worker.name, code, frozen.loss_of(worker)))
        return exits

    def _send(self, number: signal.Signals, running: Sequence[WorkerProcess], reason: str) -> None:
        names = ", ".join(worker.name for worker in running)
        self._printer.log(f"{reason}: sending {number.name} to {names}")
        for worker in running:
            worker.signal(number)

    def _wait(self, until_s: float | None) -> bool:
        """Copies output until a signal arrives, a worker ends, or the time is ``until_s``.

        Returns:
            Whether a stop signal arrived.
        """
        while True:
            left_s = None if until_s is None else max(0.0, until_s - time.monotonic())
            sources: list[Signals | IO[bytes]] = [self._signals, *self._printer.sources]
            readable, writable, _ = select.select(sources, self._printer.targets, [], left_s)
            for source in readable:
                if not isinstance(source, Signals):
                    self._printer.read(source)
            if writable:
                self._printer.write()
            if self._signals in readable:
                received = self._signals.receive()
                self._stop_signals += received
                return bool(received)
            if left_s == 0:
                return False


class _Shutdown:
    """When to send which signal to the workers that still run, and why.

    Attributes:
        reason: the last plan's reason, for people; empty before a plan.
        is_exit_counted: whether exits count for the decision; false after workers were signalled
            because another one failed.
    """

    def __init__(self) -> None:
        self.reason = ""
        self.is_exit_counted = True
        self._is_requested = False
        self._signals: list[tuple[float, signal.Signals]] = []  # times and numbers

    @property
    def is_planned(self) -> bool:
        """Whether a plan was set, even if all of its signals have been sent."""
        return bool(self.reason)

    @property
    def due_s(self) -> float | None:
        """The monotonic time of the next signal; None if no signal is left."""
        return self._signals[0][0] if self._signals else None

    def plan_for_signals(self, received: Sequence[signal.Signals], timeout_s: float) -> None:
        """Replaces the plan after the launcher has received another stop signal."""
        self._is_requested = True
        plan = policy.on_stop_signals(received, timeout_s)
        self._set_plan(plan, f"got {received[-1].name}")

    def plan_for_exit(self, worker_exit: policy.Exit) -> None:
        """Makes a plan after a worker has ended, if it needs one and no plan exists."""
        if worker_exit.code != exit_codes.FINISHED and not self.is_planned:
            self._set_plan(policy.ON_FAILURE, str(worker_exit))

    def pop_due(self) -> signal.Signals | None:
        """Removes and returns the next signal if its time has come."""
        if self.due_s is None or time.monotonic() < self.due_s:
            return None
        self.is_exit_counted &= self._is_requested
        return self._signals.pop(0)[1]

    def _set_plan(self, plan: policy.StopPlan, reason: str) -> None:
        now_s = time.monotonic()
        self._signals = [(now_s + after_s, number) for after_s, number in plan]
        self.reason = reason


def _environ(**variables: str) -> dict[str, str]:
    # Unbuffered, so that the last lines of a killed worker are printed too.
    return {"PYTHONUNBUFFERED": "1", **os.environ, **variables}


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:  # all are open at once, so that they differ
        ports = []
        for _ in range(count):
            listener = stack.enter_context(socket.socket())
            listener.bind(("", 0))  # free on every interface: TensorFlow listens on all
            ports.append(listener.getsockname()[1])
    return ports
