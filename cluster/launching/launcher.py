"""Runs the workers of a cluster; ``cluster.policy`` makes the decisions."""

from __future__ import annotations

import select
import signal
import time
from collections.abc import Mapping, Sequence
from typing import IO

from cluster import exit_codes, policy, spec
from cluster.launching import spares
from cluster.launching.frozen import FrozenWorkers
from cluster.launching.machines import Machines, Worker
from cluster.launching.printer import STDERR, STDOUT, Printer
from cluster.launching.shutdown import Shutdown
from cluster.launching.signals import Signals
from cluster.launching.spares import Spares


class Launcher:
    """Starts workers, watches them, stops them, and starts them again.

    Args:
        machines: where the workers run.
        max_restarts: number of restarts per hour of running.
        stop_timeout_s: time that workers have to save and end after a stop signal.
        has_spares: whether to keep a spare for each worker.
        printer: prints the workers' output.
        signals: receives the launcher's signals.
    """

    def __init__(
        self,
        machines: Machines,
        *,
        max_restarts: int,
        stop_timeout_s: float,
        has_spares: bool,
        printer: Printer,
        signals: Signals,
    ) -> None:
        self._machines = machines
        self._max_restarts = max_restarts
        self._stop_timeout_s = stop_timeout_s
        self._printer = printer
        self._signals = signals
        self._stop_signals: list[signal.Signals] = []  # received so far
        self._spares = Spares(machines.slots if has_spares else (), self._start_spare)

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
        """Runs the cluster once, adds how long it ran to ``run_times_s``, and decides."""
        exits: Sequence[policy.Exit] = ()
        run_times_s.append(0.0)
        try:
            addresses = self._find_addresses()
            if addresses is not None:
                started_s = time.monotonic()
                exits = self._run_once(addresses)
                run_times_s[-1] = time.monotonic() - started_s
        except policy.CantStart as error:
            exits = error.exits
        except OSError as error:
            return policy.Decision(exit_codes.FAILED, f"can't run the command: {error}")
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

    def _find_addresses(self) -> Mapping[int, str] | None:
        """Returns the address of each slot for the next start; None if a stop signal came first.

        Raises:
            policy.CantStart: if there are too few.
            OSError: if it is not possible to find out.
        """
        self._machines.begin()
        while (addresses := self._machines.poll()) is None:
            if self._wait(until_s=None):
                return None
        return addresses

    def _run_once(self, addresses: Mapping[int, str]) -> list[policy.Exit]:
        """Runs the cluster once, until every worker has ended.

        Args:
            addresses: of each slot that gets a worker.

        Returns:
            The workers' exits in order of time, without those of workers that the launcher stopped
            because another one had failed.
        """
        running: list[Worker] = []
        exits: list[policy.Exit] = []
        shutdown = Shutdown()
        frozen = FrozenWorkers()
        try:
            self._start_workers(addresses, running)
            while running:
                if (number := shutdown.pop_due()) is not None:
                    self._send(number, running, shutdown.reason)
                if not shutdown.is_planned:
                    self._spares.start_if_due()
                for line in frozen.kill_if_due(running):
                    self._printer.log(line)
                due_s = shutdown.due_s if shutdown.is_planned else self._spares.due_s
                if self._wait(_least(frozen.due_s, due_s)):
                    shutdown.plan_for_signals(self._stop_signals, self._stop_timeout_s)
                for worker_exit in self._remove_ended(running, frozen):
                    if shutdown.is_exit_counted:
                        exits.append(worker_exit)
                        shutdown.plan_for_exit(worker_exit)
        finally:
            for worker in running:
                worker.signal(signal.SIGKILL)
        return exits

    def _start_workers(self, addresses: Mapping[int, str], running: list[Worker]) -> None:
        """Starts all workers and adds each to ``running`` at once."""
        names = tuple(spec.task_name("worker", index) for index in range(len(addresses)))
        for index, slot in enumerate(addresses):
            cluster = spec.Cluster(tuple(addresses.values()), names, index)
            tf_config = cluster.tf_config()
            worker = self._spares.activate(slot, tf_config)
            if worker is None:
                worker = self._machines.start(slot, cluster.name, {"TF_CONFIG": tf_config})
            worker.name = cluster.name
            running.append(worker)
            self._printer.add(worker.stdout, worker.name, index, STDOUT)
            self._printer.add(worker.stderr, worker.name, index, STDERR)
        self._spares.schedule()

    def _start_spare(self, slot: int) -> Worker:
        environ = {spares.VARIABLE: str(slot)}
        return self._machines.start(slot, f"spare {slot}", environ, has_input=True)

    def _remove_ended(self, running: list[Worker], frozen: FrozenWorkers) -> list[policy.Exit]:
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
                exits.append(policy.Exit(worker.name, code, frozen.loss_of(worker) or worker.loss))
        return exits

    def _send(self, number: signal.Signals, running: Sequence[Worker], reason: str) -> None:
        names = ", ".join(worker.name for worker in running)
        self._printer.log(f"{reason}: sending {number.name} to {names}")
        for worker in running:
            worker.signal(number)

    def _wait(self, until_s: float | None) -> bool:
        """Copies output until a signal arrives, a worker ends, or the time is ``until_s``.

        A host that becomes ready or gets lost ends it as well.

        Returns:
            Whether a stop signal arrived.
        """
        while True:
            self._printer.read_arrived()
            printed, served = self._printer.sources, self._machines.sources
            left_s = None if until_s is None else max(0.0, until_s - time.monotonic())
            sources: list[Signals | IO[bytes]] = [self._signals, *printed, *served]
            targets: list[int | IO[bytes]] = [*self._printer.targets, *self._machines.targets]
            at_most_s = _least(left_s, self._machines.tend_every_s)
            readable, writable, _ = select.select(sources, targets, [], at_most_s)
            for source in printed:
                if source in readable:
                    self._printer.read(source)
            if any(target in writable for target in self._printer.targets):
                self._printer.write()
            has_news = self._machines.tend([*readable, *writable])
            if self._signals in readable:
                received = self._signals.receive()
                self._stop_signals += received
                return bool(received)
            if has_news or left_s == 0:
                return False


def _least(*times_s: float | None) -> float | None:
    return min((time_s for time_s in times_s if time_s is not None), default=None)
