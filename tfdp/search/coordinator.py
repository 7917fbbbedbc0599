"""The coordinator: it alone owns the search, and decides which trials run."""

from __future__ import annotations

import dataclasses
import errno
import os
import signal
import time
from collections.abc import Callable, Sequence
from typing import Final

from cluster import exit_codes, policy
from tfdp import files
from tfdp.errors import BadInput, TrainingError, WorkdirInUse
from tfdp.search.child import SearchStopped, Wait
from tfdp.search.fleet import Fleet, RunningStretch
from tfdp.search.objective import Objective
from tfdp.search.order_file import OrderFile
from tfdp.search.screen import Screen
from tfdp.search.search import Search, Stretch
from tfdp.search.settings import TuneSettings
from tfdp.search.slot import Slot
from tfdp.search.table import Table
from tfdp.search.trial import TrialFolder

MAX_FRUITLESS_STARTS: Final = 10  # of a trial, in a row, without a new checkpoint
MAX_PAUSE_S: Final = 10.0  # before a trial starts again
MAX_REST_S: Final = 60.0  # of a slot whose host or node is away
LOOK_EVERY_S: Final = 1.0  # at frozen trials, time limits, the screen
_DISK_FAULTS: Final = tuple(map(os.strerror, (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)))
LOCKED_FOR_LONG_S: Final = 10.0
_LOCK_PAUSE_S: Final = 0.2  # a process of this trial that was killed may not have ended yet


@dataclasses.dataclass
class _Starts:
    """The starts of one trial, or in one slot, by this coordinator."""

    fruitless: int = 0  # in a row
    not_before_s: float = 0.0
    locked: int = 0  # how often its folder was found in use
    is_lock_said: bool = False


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
        self._fleet = Fleet(slots, settings.workdir, wait)
        self._starts: dict[int, _Starts] = {}
        self._starts_in = {slot.name: _Starts() for slot in slots}  # in which no trial came to run
        self._began_s = time.monotonic()
        self.slot_s = self.idle_s = 0.0

    def run(self) -> None:
        """Runs trials until the search is over.

        Raises:
            BadInput: if a trial finds that its flags or the recipe are wrong.
            SearchStopped: if a signal came; trials have saved and ended.
            TrainingError: if too many trials fail in a row.
        """
        with self._fleet:
            try:
                self._run()
            except (TrainingError, KeyboardInterrupt):
                self._fleet.stop(signal.SIGTERM)  # trials save what they have
                raise
        self._screen.update(self._search.table, {})

    def _run(self) -> None:
        if self._order is not None:
            self._replay(self._order)
        while True:
            self._count_results()
            if not self._search.in_flight:
                return
            if self._is_time_up:
                self._screen.event("--timeout_s is over: stopping the trials that still run")
                if stop_signals := self._fleet.stop(signal.SIGTERM):
                    raise SearchStopped(stop_signals[0])
                return
            self._start_trials()
            self._screen.update(self._search.table, self._fleet.shown())
            if stop_signals := self._wait_for_change():
                self._screen.event(f"got {stop_signals[0].name}: trials save and stop")
                self._fleet.stop(stop_signals[0])
                self._screen.update(self._search.table, {})
                raise SearchStopped(stop_signals[0])
            for line in self._fleet.kill_frozen():
                self._screen.event(line)
            for running, end in self._fleet.pop_ended():
                self._judge(running, end)
            self._fail_overdue()

    def _wait_for_change(self) -> Sequence[signal.Signals]:
        """Waits until something may have happened; returns signals to stop."""
        began_s = time.monotonic()
        pauses_s = [starts.not_before_s - began_s for starts in self._starts.values()]
        stop_signals = self._wait(
            min([LOOK_EVERY_S, *(pause_s for pause_s in pauses_s if pause_s > 0)])
        )
        waited_s = time.monotonic() - began_s
        self.slot_s += waited_s * len(self._slots)
        is_waiting = self._search.in_flight and not self._settings.asynchronous
        if is_waiting and len(self._search.table) < self._settings.trials:
            self.idle_s += waited_s * len(self._fleet.free_slots)
        return stop_signals

    @property
    def _is_time_up(self) -> bool:
        limit_s = self._settings.timeout_s
        return limit_s is not None and time.monotonic() - self._began_s > limit_s

    # The search: which results count.

    def _count_results(self) -> None:
        """Lets all results count whose turn it is, and begins the trials that follow."""
        has_changed = self._begin_trials()
        try:
            while (stretch := self._next_with_result()) is not None:
                has_changed = True
                self._enter(stretch)
                self._begin_trials()
        finally:  # the last of too many failures is shown as well
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
            in_flight = {(each.number, each.last_step): each for each in self._search.in_flight}
            if (stretch := in_flight.get(result)) is None:
                raise order.damage(f"trial {result[0]} was not at step {result[1]}")
            found = self._folder(stretch.number).result(self._pause_of(stretch), self._objective)
            if found is None:
                raise BadInput(
                    f"{self._folder(stretch.number).path} has lost its results of step "
                    f"{stretch.last_step}: restore it, or use another --workdir"
                )
            self._search.enter(stretch, found)

    # The slots: which trials run.

    def _start_trials(self) -> None:
        """Starts stretches in free slots, those first whose results count first."""
        now_s = time.monotonic()
        free = [
            slot
            for slot in self._fleet.free_slots
            if now_s >= self._starts_in[slot.name].not_before_s
        ]
        for stretch in sorted(self._search.in_flight):
            if not free:
                return
            starts = self._starts.setdefault(stretch.number, _Starts())
            if stretch.number in self._fleet.running or now_s < starts.not_before_s:
                continue
            if self._has_result(stretch):
                continue
            if self._is_locked(stretch.number):
                starts.not_before_s = now_s + _LOCK_PAUSE_S
                self._say_if_locked_for_long(stretch.number, starts)
                continue
            command = self._command(stretch.number, self._pause_of(stretch))
            self._fleet.start(stretch, free.pop(0), self._folder(stretch.number), command)

    def _judge(self, running: RunningStretch, end: policy.Exit) -> None:
        """Decides what the end of a process means: a result, a failure, or another start."""
        folder, to_step = running.folder, self._pause_of(running.stretch)
        is_finished = end.code == exit_codes.FINISHED
        if running.has_run:
            self._starts_in[running.slot.name].fruitless = 0
        if end.code == exit_codes.BAD_INPUT:
            raise BadInput(
                "\n".join([f"{end}: the search ends, as other trials would", *folder.last_lines()])
            )
        if self._has_result(running.stretch):
            return
        if is_finished and not running.slot.may_be_away:
            folder.write_failure(to_step, "it ended with 0, but without results")
        elif end.is_permanent:
            _check_disk(folder, end)
            folder.write_failure(to_step, folder.reason or str(end))
        elif not is_finished and self._is_away(running):
            self._start_again(running, f"{end} before it trained on {running.slot.name}")
        else:  # or it ran elsewhere, and its results are not seen here yet, as over NFS
            starts = self._starts[running.stretch.number]
            starts.fruitless = 0 if running.has_progressed else starts.fruitless + 1
            if starts.fruitless >= MAX_FRUITLESS_STARTS:
                folder.write_failure(
                    to_step,
                    f"{end}, {starts.fruitless} times in a row without a new checkpoint",
                )
                return
            pause_s = min(0.5 * (starts.fruitless - 1), MAX_PAUSE_S) if starts.fruitless else 0.0
            starts.not_before_s = time.monotonic() + pause_s
            self._start_again(running, str(end))

    def _start_again(self, running: RunningStretch, reason: str) -> None:
        self._fleet.note_restart(running.stretch.number)
        self._screen.event(f"{reason}: it starts again")

    def _is_away(self, running: RunningStretch) -> bool:
        """Returns whether a trial never came to run in its slot, which then rests for a while.

        The trial is not at fault if a host can't be reached, or a node of a Slurm job is dead.
        """
        starts = self._starts_in[running.slot.name]
        if running.has_run or not running.slot.may_be_away:
            return False
        starts.fruitless += 1
        starts.not_before_s = time.monotonic() + min(2.0 ** (starts.fruitless - 1), MAX_REST_S)
        return True

    def _fail_overdue(self) -> None:
        limit_s = self._settings.trial_timeout_s
        for number, running in self._fleet.running.items():
            if limit_s is not None and self._fleet.training_s(number) > limit_s:
                running.folder.write_failure(
                    self._pause_of(running.stretch),
                    f"it has trained for more than {limit_s:g} s (--trial_timeout_s)",
                )
                running.process.signal(signal.SIGKILL)

    def _has_result(self, stretch: Stretch) -> bool:
        if stretch.number in self._fleet.running:
            return False
        folder = self._folder(stretch.number)
        return folder.result(self._pause_of(stretch), self._objective) is not None

    def _say_if_locked_for_long(self, number: int, starts: _Starts) -> None:
        starts.locked += 1
        if starts.locked * _LOCK_PAUSE_S >= LOCKED_FOR_LONG_S and not starts.is_lock_said:
            starts.is_lock_said = True
            self._screen.event(
                f"trial {number} waits: another process uses {self._folder(number).path}"
            )

    def _is_locked(self, number: int) -> bool:
        try:
            os.close(files.lock_workdir(self._folder(number).path))
        except WorkdirInUse:
            return True
        return False

    def _pause_of(self, stretch: Stretch) -> int | None:
        return None if stretch.last_step >= self._total_steps else stretch.last_step

    def _folder(self, number: int) -> TrialFolder:
        return TrialFolder(self._settings.workdir, number)


def _check_disk(folder: TrialFolder, end: policy.Exit) -> None:
    """Raises TrainingError if a trial ended because of the disk, which is no property of it."""
    said = [line for line in folder.last_lines() if "tfdp: " in line]  # maybe after a worker's name
    if said and any(fault in said[-1] for fault in _DISK_FAULTS):
        raise TrainingError(
            f"{end}. This does not count as a failure, as the disk is at fault: {said[-1]}\n"
            "When it is repaired, the same command goes on"
        )
