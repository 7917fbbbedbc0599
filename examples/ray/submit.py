"""A run on a Ray cluster: ``python submit.py --workers=2 -- python -m tfdp.train …``.

Copy this file. It reserves one bundle of a placement group for each worker, and starts an actor in
each. The actor keeps the worker as its child process: output, exit code and signals pass through
it, and the worker dies with it. ``cluster.policy`` decides about restarts and the exit code, as it
does for ``python -m cluster.launch``, so both end alike.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any, Final

import ray
from ray.util.placement_group import (
    PlacementGroup,
    placement_group,
    remove_placement_group,
)
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from cluster import exit_codes, policy, spec
from cluster.launching import command_line
from cluster.launching.printer import STDERR, STDOUT, LineSplitter
from cluster.launching.process import WorkerProcess
from cluster.launching.shutdown import Shutdown
from cluster.launching.signals import Signals
from cluster.launching.watchdog import Watchdog

ATTEND_S: Final = 0.5  # longest wait of a keeper for its worker, so the delay of a signal
POLL_S: Final = 0.2  # longest time in which this process does not look for its own signals
REMIND_S: Final = 30.0  # between messages that nodes are missing
_READ_BYTES = 1 << 16


class Stopped(Exception):  # noqa: N818
    """A signal to stop has come while workers were being started."""


@ray.remote(max_restarts=0)
class Keeper:
    """The actor: keeps one worker as its child process.

    It has one thread for its methods, the main thread. That is the thread whose end the worker does
    not survive.
    """

    def __init__(self) -> None:
        self._watchdog = Watchdog(is_orphan=True)  # Ray kills an actor's children with it
        self._listener = socket.socket()

    def address(self, folder: str | None) -> str:
        """Enters ``folder``; returns the address of this node with a port that is free on it."""
        if folder is not None:
            os.chdir(folder)
        self._listener.bind(("", 0))  # stays taken until the start, so that ports of a node differ
        host, port = ray.util.get_node_ip_address(), self._listener.getsockname()[1]
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    def start(self, name: str, command: Sequence[str], tf_config: str) -> None:
        """Starts the worker; a ``python`` in front is the interpreter of this actor."""
        program = [sys.executable] if command[0] == "python" else [command[0]]
        # Unbuffered, so that the last lines of a killed worker are printed too.
        environ = {"PYTHONUNBUFFERED": "1", **os.environ, "TF_CONFIG": tf_config}
        self._listener.close()
        mask = signal.pthread_sigmask(signal.SIG_SETMASK, [])  # Ray blocks SIGINT; a child inherits
        try:
            self._worker = WorkerProcess(name, [*program, *command[1:]], environ, self._watchdog)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        self._streams = {self._worker.stdout: STDOUT, self._worker.stderr: STDERR}

    def attend(
        self, numbers: Sequence[signal.Signals]
    ) -> tuple[list[tuple[int, bytes]], int | None]:
        """Sends signals to the worker, and waits a short time for output.

        Returns:
            Output, each piece with its stream, and the exit code (minus a signal) after the end.
        """
        for number in numbers:
            self._worker.signal(number)
        readable, _, _ = select.select(list(self._streams), [], [], ATTEND_S)
        output = [piece for stream in readable for piece in self._read(stream)]
        code = self._worker.poll()
        if code is not None:
            for stream in list(self._streams):
                os.set_blocking(stream.fileno(), False)  # an unknown process may hold the pipe
                while pieces := self._read(stream):
                    output += pieces
        return output, code

    def _read(self, stream: IO[bytes]) -> list[tuple[int, bytes]]:
        data = stream.read(_READ_BYTES) if stream in self._streams else None
        if data:
            return [(self._streams[stream], data)]
        if data is not None:
            del self._streams[stream]
        return []


class Worker:
    """A worker as this process sees it: its actor, and what it has printed.

    Args:
        index: of the worker, and of its bundle.
        group: the placement group.
        resources: of a bundle, by Ray's names.
    """

    def __init__(self, index: int, group: PlacementGroup, resources: dict[str, float]) -> None:
        self.name = spec.task_name("worker", index)
        self.to_send: list[signal.Signals] = []  # signals, with the next call
        self.keeper = Keeper.options(
            num_cpus=resources["CPU"],
            num_gpus=resources.get("GPU", 0),
            scheduling_strategy=PlacementGroupSchedulingStrategy(group, index),
        ).remote()
        self._splitters = {STDOUT: LineSplitter(), STDERR: LineSplitter()}

    def attend(self) -> ray.ObjectRef[Any]:
        """Calls ``Keeper.attend``."""
        numbers, self.to_send = self.to_send, []
        return self.keeper.attend.remote(numbers)

    def print(self, output: Sequence[tuple[int, bytes]]) -> None:
        """Prints whole lines, each with the worker's name in front."""
        for target, data in output:
            self._write(target, self._splitters[target].feed(data))

    def finish(self) -> None:
        """Prints what has no line end."""
        for target, splitter in self._splitters.items():
            self._write(target, splitter.finish())

    def _write(self, target: int, lines: Any) -> None:
        write(target, b"".join(b"[%s] %s\n" % (self.name.encode(), line) for line in lines))


class Run:
    """Starts workers, watches them, stops them, and starts them again.

    Args:
        flags: the command line.
        signals: of this process.
    """

    def __init__(self, flags: argparse.Namespace, signals: Signals) -> None:
        self._flags = flags
        self._signals = signals
        self._stop_signals: list[signal.Signals] = []  # received so far
        self._resources = {"CPU": flags.cpus_per_worker, "GPU": flags.gpus_per_worker}
        if not flags.gpus_per_worker:
            del self._resources["GPU"]
        # With a working_dir, Ray has put the files there, and starts actors in it.
        env = ray.get_runtime_context().runtime_env
        self._folder = None if env.get("working_dir") else str(Path.cwd())

    def run(self) -> int:
        """Runs the workers, again after each loss as far as the policy allows; returns the code."""
        run_times_s: list[float] = []
        while True:
            try:
                decision = self._run_and_decide(run_times_s)
                log(decision.reason)
                if decision.exit_code is not None:
                    return decision.exit_code
                self._wait_until(time.monotonic() + decision.pause_s)
            except Stopped:
                decision = policy.stopped_by(self._stop_signals[0])
                log(decision.reason)
                return decision.exit_code or exit_codes.FAILED

    def _run_and_decide(self, run_times_s: list[float]) -> policy.Decision:
        """Reserves bundles, anew for each start: the node of an earlier bundle may be lost."""
        group = placement_group(
            [self._resources] * self._flags.workers, strategy=self._flags.placement
        )
        try:
            self._wait_for_nodes(group)
            started_s = time.monotonic()
            exits = self._run_once(group)
        except OSError as error:
            return policy.Decision(exit_codes.FAILED, f"can't run the command: {error}")
        finally:
            remove_placement_group(group)
        run_times_s.append(time.monotonic() - started_s)
        return policy.decide(
            exits,
            stop_signal=self._stop_signals[0] if self._stop_signals else None,
            run_times_s=run_times_s,
            max_restarts=self._flags.max_restarts,
        )

    def _wait_for_nodes(self, group: PlacementGroup) -> None:
        """Waits until Ray has placed all bundles."""
        remind_s = time.monotonic() + 2.0
        while not group.wait(POLL_S):
            self._raise_if_stopped()
            if time.monotonic() > remind_s:
                remind_s = time.monotonic() + REMIND_S
                log(
                    f"waiting for nodes: {self._flags.workers} of {self._resources} by "
                    f"{self._flags.placement}; free now: {ray.available_resources()}"
                )

    def _run_once(self, group: PlacementGroup) -> list[policy.Exit]:
        """Runs the workers once, until all have ended.

        Returns:
            Their exits in order of time, without those of workers that were stopped because another
            one had failed.

        Raises:
            Stopped: if a signal came before all were started.
            OSError: if the command can't be started.
        """
        workers = [Worker(index, group, self._resources) for index in range(self._flags.workers)]
        try:
            lost = self._start(workers)
            return [lost] if lost else self._watch(workers)
        finally:
            for worker in workers:
                ray.kill(worker.keeper)

    def _start(self, workers: Sequence[Worker]) -> policy.Exit | None:
        """Starts all workers; returns the exit of one whose actor was lost meanwhile."""
        addresses = []
        for worker in workers:
            address = self._get(worker, worker.keeper.address.remote(self._folder))
            if isinstance(address, policy.Exit):
                return address
            addresses.append(address)
        names = tuple(worker.name for worker in workers)
        for index, worker in enumerate(workers):
            tf_config = spec.Cluster(tuple(addresses), names, index).tf_config()
            started = worker.keeper.start.remote(worker.name, self._flags.command, tf_config)
            if isinstance(lost := self._get(worker, started), policy.Exit):
                return lost
        return None

    def _get(self, worker: Worker, result: ray.ObjectRef[Any]) -> Any:
        """Waits for a result, and returns it; a ``policy.Exit`` if the actor was lost."""
        while not ray.wait([result], timeout=POLL_S)[0]:
            self._raise_if_stopped()
        try:
            return ray.get(result)
        except ray.exceptions.RayActorError as error:
            log(f"the actor of {worker.name} was lost: {' '.join(str(error).split())}")
            # The kernel has killed the worker with it.
            return policy.Exit(worker.name, -signal.SIGKILL, "was lost with its actor")

    def _watch(self, workers: Sequence[Worker]) -> list[policy.Exit]:
        exits: list[policy.Exit] = []
        shutdown = Shutdown()
        running = {worker.attend(): worker for worker in workers}
        while running:
            if (number := shutdown.pop_due()) is not None:
                self._send(number, list(running.values()), shutdown.reason)
            ready, _ = ray.wait(list(running), timeout=POLL_S)
            if received := self._signals.receive():
                self._stop_signals += received
                shutdown.plan_for_signals(self._stop_signals, self._flags.stop_timeout_s)
            for result in ready:
                worker = running.pop(result)
                worker_exit = self._get(worker, result)
                if not isinstance(worker_exit, policy.Exit):
                    output, code = worker_exit
                    worker.print(output)
                    if code is None:
                        running[worker.attend()] = worker
                        continue
                    worker_exit = policy.Exit(worker.name, code)
                worker.finish()
                if shutdown.is_exit_counted:
                    exits.append(worker_exit)
                    shutdown.plan_for_exit(worker_exit)
        return exits

    def _send(self, number: signal.Signals, running: Sequence[Worker], reason: str) -> None:
        log(f"{reason}: sending {number.name} to {', '.join(worker.name for worker in running)}")
        for worker in running:
            if number == signal.SIGKILL:
                ray.kill(worker.keeper)  # also where the node does not answer any more
            else:
                worker.to_send.append(number)

    def _wait_until(self, time_s: float) -> None:
        while time.monotonic() < time_s:
            self._raise_if_stopped()
            select.select([self._signals], [], [], max(0.0, time_s - time.monotonic()))

    def _raise_if_stopped(self) -> None:
        self._stop_signals += self._signals.receive()
        if self._stop_signals:
            raise Stopped


def write(target: int, data: bytes) -> None:
    """Writes to a stream of this process, whose reader may have gone."""
    with contextlib.suppress(OSError):
        os.write(target, data)


def log(text: str) -> None:
    """Prints a line of this process itself."""
    write(STDERR, f"[submit] {text}\n".encode())


def main(argv: Sequence[str]) -> int:
    """Runs a command as workers on a Ray cluster; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python submit.py",
        usage="%(prog)s [flags] -- command …",
        description="Runs a command as workers on a Ray cluster (RAY_ADDRESS).",
        allow_abbrev=False,
    )
    parser.add_argument("--workers", type=int, default=1, help="number of workers (%(default)s)")
    parser.add_argument("--cpus_per_worker", type=float, default=1, help="(%(default)s)")
    parser.add_argument("--gpus_per_worker", type=float, default=0, help="(%(default)s)")
    parser.add_argument(
        "--placement",
        choices=["SPREAD", "STRICT_SPREAD", "PACK"],
        default="SPREAD",
        help="how Ray places workers: on different nodes if it can (%(default)s), on different "
        "nodes or not at all, on few nodes",
    )
    parser.add_argument(
        "--max_restarts",
        type=int,
        default=0,
        help="how often per hour all workers are started again after one was lost (%(default)s)",
    )
    parser.add_argument(
        "--stop_timeout_s",
        type=float,
        default=30.0,
        help="seconds that workers have to save and end after SIGINT or SIGTERM (%(default)s)",
    )
    flags = command_line.parse(parser, argv)
    if flags.workers < 1:
        parser.error(f"--workers is {flags.workers}: it has to be 1 or more")
    if flags.cpus_per_worker <= 0:
        parser.error(f"--cpus_per_worker is {flags.cpus_per_worker}: it has to be more than 0")
    ray.init(log_to_driver=False)  # workers' lines come by their keepers, none is left out
    with Signals() as signals:
        return Run(flags, signals).run()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
