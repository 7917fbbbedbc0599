"""Runs the workers of a Slurm job, step after step; ``cluster.policy`` makes the decisions."""

from __future__ import annotations

import contextlib
import select
import signal
import sys
import time
from collections.abc import Mapping, Sequence, Set
from pathlib import Path
from typing import Final

from cluster import exit_codes, policy
from cluster.launching.signals import Signals
from cluster.slurm import task
from cluster.slurm.job import Job
from cluster.slurm.step import Step, StepEnd

# A task that ends does not end the others: they save, or end with a code of their own.
FLAGS: Final = ("--kill-on-bad-exit=0", "--wait=0")
ANSWER_TIMEOUT_S: Final = 60.0  # for Slurm, whose controller may be restarting


class SlurmRunner:
    """Starts steps of a job, and puts the job back into the queue.

    Args:
        command: the program that every task runs, and its arguments.
        job: the job of this process.
        srun_flags: more flags for srun.
        max_restarts: number of restarts per hour of running.
        min_workers: number of workers that have to be left to go on without nodes that died; None
            to never go on without one.
        is_one_of_several: whether others may run in the job beside this one, so that the job is
            left alone, and srun may refuse a step now that it will start later.
        signals: receives this program's signals.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        job: Job,
        srun_flags: Sequence[str],
        max_restarts: int,
        min_workers: int | None,
        is_one_of_several: bool = False,
        signals: Signals,
    ) -> None:
        self._command = command
        self._job = job
        self._srun_flags = srun_flags
        self._max_restarts = max_restarts
        self._min_workers = min_workers
        self._is_one_of_several = is_one_of_several
        self._signals = signals
        self._tasks_on: Mapping[str, int] = {}  # of the last complete start
        self._excluded_nodes: set[str] = set()
        self._is_srun_lost = False  # whether one of the steps had to be left behind
        self._run_times_s: list[float] = []

    def run(self) -> int:
        """Runs steps, as the policy decides.

        Returns:
            The exit code.
        """
        if (missing := self._job.missing_programs) and not self._is_one_of_several:
            _log(
                f"{' and '.join(missing)} can't be run here (in a container?), so the job can't be "
                "put back into the queue from here: let the batch script do it if this ends with "
                "128 or more"
            )
        while True:
            try:
                end = self._run_step()
            except OSError as error:
                _log(f"can't run srun: {error}")
                return exit_codes.FAILED
            decision = self._decide(end, end.stop_signal)
            _log(decision.reason)
            stop_signal = None if decision.exit_code is not None else self._pause(decision.pause_s)
            if stop_signal is not None:
                decision = self._decide(end, stop_signal)
                _log(decision.reason)
            if decision.should_requeue and not self._is_one_of_several:
                self._requeue()
            if decision.exit_code is not None:
                return decision.exit_code

    def _run_step(self) -> StepEnd:
        flags = [*FLAGS, *self._srun_flags]
        if self._excluded_nodes:
            flags += [f"--nodes={len(self._tasks_on)}", f"--ntasks={sum(self._tasks_on.values())}"]
            flags += [f"--exclude={','.join(sorted(self._excluded_nodes))}"]
        if self._is_srun_lost:
            flags.append("--overlap")  # with a step that, to Slurm, is still there
        step = Step(
            ["srun", *flags, *_task_command(self._command)],
            signals=self._signals,
            is_job_running=self._job.is_running,
            log=_log,
        )
        started_s = time.monotonic()
        end = step.run()
        self._run_times_s.append(time.monotonic() - started_s)
        self._is_srun_lost |= end.is_srun_lost
        if end.has_started:
            self._tasks_on = end.tasks_on
        return end

    def _decide(self, end: StepEnd, stop_signal: signal.Signals | None) -> policy.Decision:
        dead_nodes = end.dead_nodes | self._nodes_lost_to(end)
        if dead_nodes and stop_signal is None and self._can_go_on_without(dead_nodes):
            self._excluded_nodes |= dead_nodes
            self._tasks_on = {n: c for n, c in self._tasks_on.items() if n not in dead_nodes}
            _log(f"going on without {', '.join(sorted(dead_nodes))} (--min_workers)")
            dead_nodes = frozenset()
        exits = list(end.exits)
        if not exits and stop_signal is None:
            exits.append(self._no_start())
        has_finished = exits and all(each.code == exit_codes.FINISHED for each in exits)
        is_running = has_finished or self._job.is_running(ANSWER_TIMEOUT_S)
        return policy.decide_in_job(
            exits,
            is_job_running=is_running is not False,
            dead_nodes=sorted(dead_nodes),
            stop_signal=stop_signal,
            run_times_s=self._run_times_s,
            max_restarts=self._max_restarts,
        )

    def _nodes_lost_to(self, end: StepEnd) -> Set[str]:
        """Returns the nodes that were used before, and are missing now.

        Slurm takes a node away from the job (``sbatch --no-kill``) when its slurmd has ended, also
        if all tasks have then reported their ends. Every later srun is refused as a whole.
        """
        in_job = self._job.nodes()
        taken_away = set() if in_job is None else self._tasks_on.keys() - in_job
        return taken_away or self._tasks_on.keys() - end.tasks_on.keys()

    def _no_start(self) -> policy.Exit:
        """What srun refuses, it refuses again, unless it has started the tasks before."""
        is_final = not self._tasks_on and not self._is_one_of_several
        code = exit_codes.FAILED if is_final else -signal.SIGKILL
        return policy.Exit("srun", code, "has started no task")

    def _can_go_on_without(self, nodes: Set[str]) -> bool:
        left = sum(tasks for node, tasks in self._tasks_on.items() if node not in nodes)
        return self._min_workers is not None and left >= self._min_workers

    def _pause(self, pause_s: float) -> signal.Signals | None:
        """Pauses before the next start; returns the stop signal that ended the pause, if any."""
        until_s = time.monotonic() + pause_s
        while (left_s := until_s - time.monotonic()) > 0:
            select.select([self._signals], [], [], left_s)
            if received := self._signals.receive():
                return received[0]
        return None

    def _requeue(self) -> None:
        number = self._job.number
        if self._job.is_running(ANSWER_TIMEOUT_S):
            _log(f"putting job {number} back into the queue")
            if self._job.requeue():
                return
        _log(f"job {number} can't be put back into the queue: it ends")


def _task_command(command: Sequence[str]) -> list[str]:
    """Returns the command of a task, which reports how the given command ends."""
    # A container in which srun starts tasks has a Python of its own.
    is_python = Path(command[0]).name.startswith("python")
    return [command[0] if is_python else sys.executable, "-m", task.__name__, *command]


def _log(text: str) -> None:
    with contextlib.suppress(OSError):  # the reader has gone, which is no reason to stop workers
        print(f"[slurm] {text}", file=sys.stderr, flush=True)
