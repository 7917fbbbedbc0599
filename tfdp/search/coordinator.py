"""The coordinator: it alone owns the search, and runs its trials in slots."""

from __future__ import annotations

import dataclasses
import os
import signal
import time
from collections.abc import Callable, Sequence
from typing import Final, Protocol

from cluster import exit_codes, policy
from cluster.launching.frozen import FrozenWorkers
from cluster.launching.process import WorkerProcess
from cluster.launching.watchdog import Watchdog
from tfdp import files
from tfdp.errors import BadInput, TrainingError, WorkdirInUse
from tfdp.search.child import STOP_TIMEOUT_S, SearchStopped, Wait
from tfdp.search.objective import Objective
from tfdp.search.order_file import OrderFile
from tfdp.search.screen import RunningTrial
from tfdp.search.search import Search, Stretch
from tfdp.search.settings import TuneSettings
from tfdp.search.slot import Slot
from tfdp.search.table import Table
from tfdp.search.table_files import TrialTimes, read_times, write_times
from tfdp.search.trial import TrialFolder

MAX_FRUITLESS_STARTS: Final = 10  # of a trial, in a row, without a new checkpoint
MAX_PAUSE_S: Final = 10.0  # before a trial starts again
GIVE_UP_S: Final = 10.0  # after SIGKILL
LOOK_EVERY_S: Final = 1.0  # at frozen trials, time limits, the screen
MAX_REST_S: Final = 60.0  # of a slot whose host or node is away
_LOCK_PAUSE_S: Final = 0.2  # a process of this trial that was killed may not have ended yet


class Screen(Protocol):
    """What shows the search to people."""

    def update(self, table: Table, running: dict[int, RunningTrial]) -> None:
        """Shows the trials so far."""

    def event(self, text: str) -> None:
        """Shows that something has happened."""


@dataclasses.dataclass
class _Running:
    """A stretch that runs in a slot."""

    stretch: Stretch
    slot: Slot
    process: WorkerProcess
    since_s: float
    newest_checkpoint: int  # at the start
    logged_bytes: int  # at the start


@dataclasses.dataclass
class _Starts:
    """The starts of one trial, or in one slot, by this coordinator."""

    fruitless: int = 0  # in a row
    not_before_s: float = 0.0


class Coordinator:
    """Runs a search to its end.

    Args:
        search: the search, at its beginning.
        settings: its flags.
        slots: where trials run.
        command: returns the command of a stretch: of a trial, to a step; None for its end.
        total_steps: number of updates of a whole trial.
        screen: shows the search.
        on_change: called with the table whenever a result has counted.
        wait: waits for a time in seconds or for an event; returns signals to stop that have come.

    Attributes:
        slot_s: seconds of all slots together.
        idle_s: those of them in which no trial could run, though more trials are to come.
    """

    def __init__(
        self,
        search: Search,
        settings: TuneSettings,
        slots: Sequence[Slot],
        *,
        command: Callable[[int, int | None], Sequence[str]],
        total_steps: int,
        screen: Screen,
        on_change: Callable[[Table], None],
        wait: Wait,
    ) -> None:
        self._search = search
        self._settings = settings
        self._objective = Objective.parse(settings.objective)
        self._slots = slots
        self._command = command
        self._total_steps = total_steps
        self._screen = screen
        self._on_change = on_change
        self._wait = wait
        self._order = OrderFile(settings.workdir / "order.txt") if settings.asynchronous else None
        self._running: dict[int, _Running] = {}  # by trial
        self._starts: dict[int, _Starts] = {}
        self._starts_in = {slot.name: _Starts() for slot in slots}  # in which no trial came to run
        self._times = read_times(settings.workdir)
        self._frozen = FrozenWorkers()
        self._began_s = time.monotonic()
        self.slot_s = self.idle_s = 0.0

    def run(self) -> None:
        """Runs trials until the search is over.

        Raises:
            BadInput: if a trial finds that its flags or the recipe are wrong.
            SearchStopped: if a signal came; trials have saved and ended.
            TrainingError: if too many trials fail in a row.
        """
        with Watchdog() as watchdog:
            try:
                self._run(watchdog)
            finally:
                self._stop_trials(signal.SIGKILL)
                self._screen.update(self._search.table, {})

    def _run(self, watchdog: Watchdog) -> None:
        if self._order is not None:
            self._replay(self._order)
        while True:
            self._count_results()
            if not self._search.in_flight:
                return
            if self._is_time_up:
                self._screen.event("--timeout_s is over: stopping the trials that still run")
                self._stop_trials(signal.SIGTERM)
                return
            self._start_trials(watchdog)
            self._screen.update(self._search.table, self._shown())
            began_s = time.monotonic()
            if stop_signals := self._wait(self._next_look_s()):
                self._screen.event(f"got {stop_signals[0].name}: trials save and stop")
                self._stop_trials(stop_signals[0])
                raise SearchStopped(stop_signals[0])
            waited_s = time.monotonic() - began_s
            self.slot_s += waited_s * len(self._slots)
            if len(self._search.table) < self._settings.trials:
                self.idle_s += waited_s * (len(self._slots) - len(self._running))
            self._collect()

    @property
    def _is_time_up(self) -> bool:
        limit_s = self._settings.timeout_s
        return limit_s is not None and time.monotonic() - self._began_s > limit_s

    # The search: which results count.

    def _count_results(self) -> None:
        """Lets all results count whose turn it is, and begins the trials that follow."""
        has_changed = self._begin_trials()
        while (stretch := self._next_with_result()) is not None:
            self._enter(stretch)
            self._begin_trials()
            has_changed = True
        if has_changed:
            self._on_change(self._search.table)

    def _next_with_result(self) -> Stretch | None:
        """Returns the stretch whose result counts next; None if it has no result yet."""
        in_flight = sorted(self._search.in_flight)
        turn = in_flight if self._settings.asynchronous else in_flight[:1]
        return next((each for each in turn if self._has_result(each)), None)

    def _enter(self, stretch: Stretch) -> None:
        if self._order is not None:
            self._order.add_result(stretch.number, stretch.last_step)
        folder = self._folder(stretch.number)
        result = folder.result(self._pause_of(stretch), self._objective)
        assert result is not None
        self._search.enter(stretch, result)
        if self._search.failures_in_row >= self._settings.max_failures:
            raise TrainingError(
                f"{self._search.failures_in_row} trials failed in a row (--max_failures), the last "
                f"one because: {result.failure}. What it printed is in {folder.output}"
            )

    def _begin_trials(self) -> bool:
        """Begins trials in free virtual slots; returns whether there were any."""
        settings, search = self._settings, self._search
        virtual_slots = len(self._slots) if settings.asynchronous else settings.trials_in_flight
        has_begun = False
        while (
            len(search.table) < settings.trials
            and len(search.in_flight) < virtual_slots
            and (settings.budget_examples is None or search.examples < settings.budget_examples)
        ):
            if self._order is not None:
                self._order.add_trial()
            search.begin_trial()
            has_begun = True
        return has_begun

    def _replay(self, order: OrderFile) -> None:
        """Repeats what an earlier coordinator has done, in its order."""
        for result in order.before:
            if result is None:
                self._search.begin_trial()
                continue
            stretch = next(
                each for each in self._search.in_flight if (each.number, each.last_step) == result
            )
            found = self._folder(stretch.number).result(self._pause_of(stretch), self._objective)
            if found is None:
                raise BadInput(
                    f"{self._folder(stretch.number).path} has lost its results of step "
                    f"{stretch.last_step}: restore it, or use another --workdir"
                )
            self._search.enter(stretch, found)

    # The slots: which trials run.

    def _has_result(self, stretch: Stretch) -> bool:
        folder = self._folder(stretch.number)
        is_running = stretch.number in self._running
        return (
            not is_running and folder.result(self._pause_of(stretch), self._objective) is not None
        )

    def _start_trials(self, watchdog: Watchdog) -> None:
        """Starts stretches in free slots, those first whose results count first."""
        busy = [running.slot for running in self._running.values()]
        now_s = time.monotonic()
        free = [
            slot
            for slot in self._slots
            if slot not in busy and now_s >= self._starts_in[slot.name].not_before_s
        ]
        for stretch in sorted(self._search.in_flight):
            if not free:
                return
            starts = self._starts.setdefault(stretch.number, _Starts())
            if stretch.number in self._running or time.monotonic() < starts.not_before_s:
                continue
            if self._has_result(stretch):
                continue
            if self._is_locked(stretch.number):
                starts.not_before_s = time.monotonic() + _LOCK_PAUSE_S
                continue
            self._start(stretch, free.pop(0), watchdog)

    def _start(self, stretch: Stretch, slot: Slot, watchdog: Watchdog) -> None:
        folder = self._folder(stretch.number)
        output = os.open(folder.output, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            process = WorkerProcess(
                f"trial {stretch.number}",
                [*slot.launcher, *self._command(stretch.number, self._pause_of(stretch))],
                {"PYTHONUNBUFFERED": "1", **os.environ, **slot.environ},
                watchdog,
                output=output,
            )
        except OSError as error:
            raise TrainingError(f"a trial can't be started: {error}") from error
        finally:
            os.close(output)
        self._running[stretch.number] = _Running(
            stretch,
            slot,
            process,
            time.monotonic(),
            folder.newest_checkpoint,
            folder.logged_bytes,
        )

    def _collect(self) -> None:
        """Takes note of trials that have ended, or have run for too long."""
        processes = [running.process for running in self._running.values()]
        for line in self._frozen.kill_if_due(processes):
            self._screen.event(line)
        for number, running in list(self._running.items()):
            code = running.process.poll()
            if code is not None:
                del self._running[number]
                is_restart = self._judge_exit(running, code, self._starts[number])
                self._note_time(running, is_restart=is_restart)
            elif self._is_overdue(number):
                self._folder(number).write_failure(
                    f"it has trained for more than {self._settings.trial_timeout_s:g} s "
                    "(--trial_timeout_s)"
                )
                running.process.signal(signal.SIGKILL)

    def _is_overdue(self, number: int) -> bool:
        limit_s = self._settings.trial_timeout_s
        running = self._running[number]
        seconds = self._times_of(number).training_s + time.monotonic() - running.since_s
        return limit_s is not None and seconds > limit_s

    def _times_of(self, number: int) -> TrialTimes:
        return self._times.get(number, TrialTimes(number))

    def _note_time(self, running: _Running, *, is_restart: bool) -> None:
        """Adds to the times of a trial whose process has ended."""
        number = running.stretch.number
        times = self._times_of(number)
        self._times[number] = dataclasses.replace(
            times,
            training_s=times.training_s + time.monotonic() - running.since_s,
            restarts=times.restarts + is_restart,
            slot=running.slot.name,
        )
        write_times(self._times.values(), self._settings.workdir)

    def _judge_exit(self, running: _Running, code: int, starts: _Starts) -> bool:
        """Decides what a trial's exit code means: a result, a failure, or another start.

        Returns:
            Whether the trial starts again.
        """
        stretch = running.stretch
        folder = self._folder(stretch.number)
        loss = self._frozen.loss_of(running.process)
        end = policy.Exit(f"trial {stretch.number}", code, loss)
        if code == exit_codes.BAD_INPUT:
            raise BadInput(
                "\n".join([f"{end}: the search ends, as other trials would", *folder.last_lines()])
            )
        if self._has_result(stretch):
            return False
        is_finished = code == exit_codes.FINISHED
        if not is_finished and not end.is_permanent and self._is_away(running):
            self._screen.event(f"{end} before it trained on {running.slot.name}: it starts again")
            return True
        if is_finished and not running.slot.launcher:
            folder.write_failure(f"it ended with 0, but {folder.path} has no results of it")
        elif end.is_permanent:
            folder.write_failure(_reason(folder.last_lines(), end))
        else:  # or it ran elsewhere, and its results are not seen here yet, as over NFS
            has_progressed = folder.newest_checkpoint > running.newest_checkpoint
            starts.fruitless = 0 if has_progressed else starts.fruitless + 1
            if starts.fruitless >= MAX_FRUITLESS_STARTS:
                folder.write_failure(
                    f"{end}, {starts.fruitless} times in a row without a new checkpoint"
                )
                return False
            pause_s = min(0.5 * (starts.fruitless - 1), MAX_PAUSE_S) if starts.fruitless else 0.0
            starts.not_before_s = time.monotonic() + pause_s
            self._screen.event(f"{end}: it starts again")
            return True
        return False

    def _is_away(self, running: _Running) -> bool:
        """Returns whether a trial never came to run in its slot, which then rests for a while.

        The trial is not at fault if a host can't be reached, or a node of a Slurm job is dead.
        """
        starts = self._starts_in[running.slot.name]
        has_run = self._folder(running.stretch.number).logged_bytes > running.logged_bytes
        if has_run or not running.slot.launcher:
            starts.fruitless = 0
            return False
        starts.fruitless += 1
        starts.not_before_s = time.monotonic() + min(2.0 ** (starts.fruitless - 1), MAX_REST_S)
        return True

    def _stop_trials(self, number: signal.Signals) -> None:
        """Ends all trials that run; those that don't end in time are killed."""
        until_s = time.monotonic() + STOP_TIMEOUT_S
        for running in self._running.values():
            running.process.signal(number)
        while self._running:
            for trial, running in list(self._running.items()):
                if running.process.poll() is not None:
                    del self._running[trial]
                elif time.monotonic() > until_s + GIVE_UP_S:
                    del self._running[trial]  # the kernel can't end it
                elif time.monotonic() > until_s:
                    running.process.signal(signal.SIGKILL)
            if self._running and self._wait(0.2):
                until_s = min(until_s, time.monotonic())  # a second signal

    def _is_locked(self, number: int) -> bool:
        try:
            os.close(files.lock_workdir(self._folder(number).path))
        except WorkdirInUse:
            return True
        return False

    def _next_look_s(self) -> float:
        now_s = time.monotonic()
        waiting = [
            starts.not_before_s - now_s
            for starts in self._starts.values()
            if starts.not_before_s > now_s
        ]
        return min([LOOK_EVERY_S, *waiting])

    def _shown(self) -> dict[int, RunningTrial]:
        return {
            number: RunningTrial(running.slot.name, running.stretch.last_step, running.since_s)
            for number, running in self._running.items()
        }

    def _pause_of(self, stretch: Stretch) -> int | None:
        return None if stretch.last_step >= self._total_steps else stretch.last_step

    def _folder(self, number: int) -> TrialFolder:
        return TrialFolder(self._settings.workdir, number)


def _reason(lines: Sequence[str], end: policy.Exit) -> str:
    """Returns why a trial failed: the last line for people that it printed."""
    said = [line.removeprefix("tfdp: ") for line in lines if line.startswith("tfdp: ")]
    return said[-1] if said else str(end)
