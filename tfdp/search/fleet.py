"""The processes of trials, one in each slot that is busy."""

from __future__ import annotations

import dataclasses
import os
import signal
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from cluster import policy
from cluster.launching.frozen import FrozenWorkers
from cluster.launching.process import WorkerProcess
from cluster.launching.watchdog import Watchdog
from tfdp.errors import TrainingError
from tfdp.search.child import STOP_TIMEOUT_S, Wait
from tfdp.search.screen import RunningTrial
from tfdp.search.search import Stretch
from tfdp.search.slot import Slot
from tfdp.search.table_files import TrialTimes, read_times, write_times
from tfdp.search.trial import TrialFolder

GIVE_UP_S: Final = 10.0  # after SIGKILL
_LOOK_EVERY_S: Final = 0.2  # at trials that were told to stop


@dataclasses.dataclass(frozen=True)
class RunningStretch:
    """A stretch of a trial that runs in a slot.

    Args:
        stretch: the updates.
        slot: where.
        folder: of the trial.
        process: the process in the slot.
        since_s: the monotonic time of its start.
        newest_checkpoint: the step of the trial's newest checkpoint at the start.
        logged_bytes: size of the trial's logs at the start.
    """

    stretch: Stretch
    slot: Slot
    folder: TrialFolder
    process: WorkerProcess
    since_s: float
    newest_checkpoint: int
    logged_bytes: int

    @property
    def has_progressed(self) -> bool:
        """Whether it has saved a checkpoint since its start."""
        return self.folder.newest_checkpoint > self.newest_checkpoint

    @property
    def has_run(self) -> bool:
        """Whether the run itself has started: it writes to its log at once."""
        return self.folder.logged_bytes > self.logged_bytes


class Fleet:
    """Starts, watches and ends the processes of trials. A context manager: it leaves none behind.

    Args:
        slots: where they run.
        workdir: of the search, for ``times.csv``.
        wait: waits for a time in seconds or for an event; returns signals to stop that have come.

    Attributes:
        running: what runs, by trial.
    """

    def __init__(self, slots: Sequence[Slot], workdir: Path, wait: Wait) -> None:
        self.running: dict[int, RunningStretch] = {}
        self._slots = slots
        self._workdir = workdir
        self._wait = wait
        self._frozen = FrozenWorkers()
        self._times = read_times(workdir)
        self._watchdog = Watchdog()

    def __enter__(self) -> Fleet:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.stop(signal.SIGKILL)
        finally:  # it kills what is left
            self._watchdog.__exit__()

    @property
    def free_slots(self) -> list[Slot]:
        """The slots in which nothing runs."""
        busy = [running.slot for running in self.running.values()]
        return [slot for slot in self._slots if slot not in busy]

    def start(
        self, stretch: Stretch, slot: Slot, folder: TrialFolder, command: Sequence[str]
    ) -> None:
        """Starts a stretch in a slot.

        Raises:
            TrainingError: if the process can't be started.
        """
        output = os.open(folder.output, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            process = WorkerProcess(
                f"trial {stretch.number}",
                [*slot.launcher, *command],
                {"PYTHONUNBUFFERED": "1", **os.environ, **slot.environ},
                self._watchdog,
                output=output,
            )
        except OSError as error:
            raise TrainingError(f"a trial can't be started: {error}") from error
        finally:
            os.close(output)
        self.running[stretch.number] = RunningStretch(
            stretch,
            slot,
            folder,
            process,
            time.monotonic(),
            folder.newest_checkpoint,
            folder.logged_bytes,
        )

    def pop_ended(self) -> Iterator[tuple[RunningStretch, policy.Exit]]:
        """Yields what has ended since the last call, and how."""
        for number, running in list(self.running.items()):
            if (code := running.process.poll()) is not None:
                loss = self._frozen.loss_of(running.process)
                self._forget(number)
                yield running, policy.Exit(f"trial {number}", code, loss)

    def kill_frozen(self) -> list[str]:
        """Kills processes that don't run at all; returns a line for people about each."""
        return self._frozen.kill_if_due([each.process for each in self.running.values()])

    def training_s(self, number: int) -> float:
        """Returns for how long a trial has trained so far, in all of its starts."""
        running = self.running.get(number)
        now_s = 0.0 if running is None else time.monotonic() - running.since_s
        return self._times_of(number).training_s + now_s

    def note_restart(self, number: int) -> None:
        """Counts a start of a trial after a fault."""
        times = self._times_of(number)
        self._note(dataclasses.replace(times, restarts=times.restarts + 1))

    def stop(self, number: signal.Signals) -> Sequence[signal.Signals]:
        """Sends a signal to all processes, and returns when all have ended.

        Those that have not ended in time, or by a stop signal that comes meanwhile, are killed.

        Returns:
            The stop signals that came meanwhile.
        """
        received: list[signal.Signals] = []
        until_s = time.monotonic() + STOP_TIMEOUT_S
        for running in self.running.values():
            running.process.signal(number)
        while self.running:
            for trial, running in list(self.running.items()):
                is_late = time.monotonic() > until_s
                if is_late:
                    running.process.signal(signal.SIGKILL)
                is_given_up = time.monotonic() > until_s + GIVE_UP_S  # the kernel can't end it
                if running.process.poll() is not None or is_given_up:
                    self._forget(trial, is_noted=number != signal.SIGKILL)
            if self.running and (more := self._wait(_LOOK_EVERY_S)):
                received += more
                until_s = min(until_s, time.monotonic())
        return received

    def shown(self) -> dict[int, RunningTrial]:
        """Returns what people see of it, by trial."""
        return {
            number: RunningTrial(running.slot.name, running.stretch.last_step, running.since_s)
            for number, running in self.running.items()
        }

    def _forget(self, number: int, *, is_noted: bool = True) -> None:
        training_s, slot = self.training_s(number), self.running.pop(number).slot
        if is_noted:  # not after an error: the disk may be full
            times = self._times_of(number)
            self._note(dataclasses.replace(times, training_s=training_s, slot=slot.name))

    def _times_of(self, number: int) -> TrialTimes:
        return self._times.get(number, TrialTimes(number))

    def _note(self, times: TrialTimes) -> None:
        self._times[times.number] = times
        write_times(self._times.values(), self._workdir)
