"""Ends a run that stands still, and says which worker was where.

A thread of each worker looks every second for signs of life (``tfdp.whereabouts``). If there were
none for longer than the limit, the chief asks all workers where they are. It ends the run if none
of them is within its own limit: a worker may be busy while all others wait for it.

A worker whose Python lock is held for ever can't look, answer, or end. Its guard ends it
(``cluster.meeting.guard``), whose time limit the thread no longer postpones.
"""

from __future__ import annotations

import dataclasses
import logging
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any, Final

from cluster.meeting.guard import Guard
from tfdp import log, whereabouts
from tfdp.whereabouts import ALL_REDUCE, ELSEWHERE, READING, SIGNS, STEP, Place
from tfdp.workers.faults import FAULTS

# The automatic limit: at least so long in these places, and LEAST_S in all others.
LEAST_IN_S: Final = {STEP: 600.0, ALL_REDUCE: 600.0, READING: 86400.0}
LEAST_BEFORE_FIRST_STEP_S: Final = 1800.0  # in a step
LEAST_S: Final = 3600.0
FACTOR: Final = 30.0  # at least so many times the longest time between two signs of life so far

LOOK_EVERY_S: Final = 1.0
ANSWER_TIMEOUT_S: Final = 2.0
ASK_AGAIN_S: Final = 10.0  # at most, while a worker is within its limit
# A lost worker is news for the guard once Python code has not run for so long.
PATIENCE_S: Final = 5.0
# The guard comes later than the chief's questions.
GUARD_MARGIN_S: Final = 10.0
_MAX_NAMED: Final = 4  # workers in the same place
_LEFT, _PLACE = "left", "place"  # questions of the chief
_SILENT: Final = "says nothing: its process is stopped, or a library holds Python's lock"


@dataclasses.dataclass
class Limit:
    """How long a worker may stand still.

    Args:
        timeout_s: the limit everywhere; None for an automatic one.
        longest_s: the longest time between two signs of life so far.
    """

    timeout_s: float | None
    longest_s: float = 0.0

    def of(self, place: str, has_stepped: bool) -> float:
        """Returns the limit in a place (s).

        Args:
            place: name of the place.
            has_stepped: whether this process has done an update.
        """
        if self.timeout_s is not None:
            return self.timeout_s
        least_s = LEAST_IN_S.get(place, LEAST_S)
        if place == STEP and not has_stepped:
            least_s = LEAST_BEFORE_FIRST_STEP_S
        return max(least_s, FACTOR * self.longest_s)

    def anywhere(self) -> float:
        """Returns the limit of a worker of which nobody knows where it is (s)."""
        return self.of(ELSEWHERE, has_stepped=True)


class Clock:
    """How long this process has stood still, by the time in which it ran.

    Args:
        limit: gets the longest time.
    """

    def __init__(self, limit: Limit) -> None:
        self.still_s = 0.0
        self._limit = limit
        self._last: tuple[float, Any] | None = None

    def look(self, now_s: float, state: Any) -> None:
        """Notes a look; an equal ``state`` as at the last one means that there was no sign."""
        last_s, last_state = self._last or (now_s, None)
        self._last = (now_s, state)
        if state == last_state:
            # If more time has passed, this process was frozen, or the machine was suspended.
            self.still_s += min(now_s - last_s, 2 * LOOK_EVERY_S)
        else:
            self._limit.longest_s = max(self._limit.longest_s, self.still_s)
            self.still_s = 0.0


class StandstillWatch:
    """Watches this process inside of the block; enter it in the main thread.

    Args:
        timeout_s: seconds without a sign of life after which the run ends; None for an automatic
            limit.
        index: index of this worker.
    """

    def __init__(self, timeout_s: float | None, index: int) -> None:
        self._limit = Limit(timeout_s)
        self._clock = Clock(self._limit)
        self._names = FAULTS.names
        self._index = index
        self._place = Place(ELSEWHERE)
        self._stop = threading.Event()
        self._ask_at_s = 0.0
        terminal, log_file = log.descriptors()
        self._guard = Guard(
            self._guard_timeout_s(),
            self._lock_line(),
            prefix=log.PREFIX,
            terminal=terminal,
            log=log_file,
            connections=FAULTS.connections(),
            lost_while="a library held Python's lock",
            patience_s=PATIENCE_S,
        )
        self._thread = threading.Thread(target=self._watch, name="standstill", daemon=True)

    def __enter__(self) -> None:
        self._guard.__enter__()
        FAULTS.answer_by(self._answer)
        self._thread.start()

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join()
        self._guard.__exit__(*error)

    def _watch(self) -> None:
        while not self._stop.wait(LOOK_EVERY_S):
            try:
                self._look()
                if self._index == 0 and self._is_time_to_ask():
                    self._ask()
            except Exception:  # a thread that ended here would let the guard end the process
                logging.getLogger("tfdp").exception("the watch for a standstill failed")
            self._guard.postpone(self._guard_timeout_s(), self._lock_line())

    def _look(self) -> None:
        self._place = whereabouts.of_main_thread()
        self._clock.look(time.monotonic(), (SIGNS.count, self._place.name, self._place.hook))
        if self._clock.still_s == 0:
            self._ask_at_s = 0.0

    def _left_s(self) -> float:
        """Returns how long this worker may still stand still."""
        return self._limit.of(self._place.name, SIGNS.has_stepped) - self._clock.still_s

    def _is_time_to_ask(self) -> bool:
        return self._left_s() <= 0 and self._clock.still_s >= self._ask_at_s

    def _answer(self, question: str) -> dict[str, Any]:
        if question == _LEFT:
            return {"left_s": self._left_s()}
        place = whereabouts.probed()
        return dataclasses.asdict(place)

    def _ask(self) -> None:
        """Asks all workers whether they are within their limits; ends the run if none is."""
        answers = FAULTS.ask(_LEFT, ANSWER_TIMEOUT_S)
        left_s = [float(answer["left_s"]) for answer in answers.values() if answer]
        if len(left_s) < len(self._names) - 1:
            left_s.append(self._limit.anywhere() - self._clock.still_s)
        busy_s = max(left_s, default=0.0)
        self._look()
        if busy_s > 0 or self._left_s() > 0:
            self._ask_at_s = self._clock.still_s + min(busy_s, ASK_AGAIN_S)
            return
        still_s = self._clock.still_s
        places: dict[int, Place | None] = dict.fromkeys(range(len(self._names)))
        timeout_s = ANSWER_TIMEOUT_S + whereabouts.PROBE_S
        asked = [index for index, answer in answers.items() if answer]
        for index, answer in FAULTS.ask(_PLACE, timeout_s, of=asked).items():
            places[index] = Place(**answer)
        places[self._index] = whereabouts.probed()
        FAULTS.end_run(
            f"{_since(still_s)}: {describe(self._names, places)}",
            f"{_since(still_s)}: {self._names[0]} says which worker was where",
        )

    def _guard_timeout_s(self) -> float:
        return self._limit.anywhere() + GUARD_MARGIN_S

    def _lock_line(self) -> str:
        where = f" on {name}" if (name := self._names[self._index]) else ""
        return (
            f"no step for {self._guard_timeout_s():.0f} s: a library holds Python's lock{where}; "
            f"its stacks are in {log.path()}"
        )


def describe(names: Sequence[str], places: Mapping[int, Place | None]) -> str:
    """Returns which worker was where, for people.

    Args:
        names: of all workers.
        places: of each worker by its index; None for one that did not answer.
    """
    waiting = {Place(STEP), Place(ALL_REDUCE)}
    # The workers in a step wait for one that is elsewhere. If none is, one of them computes.
    step = ALL_REDUCE if set(places.values()) - waiting else f"{STEP}, computing or in {ALL_REDUCE}"
    where: dict[str, list[str]] = {}
    for index, place in places.items():
        meant = Place(step) if place == Place(STEP) else place
        where.setdefault(_SILENT if meant is None else f"in {meant}", []).append(names[index])
    return ", ".join(f"{_listed(those)} {place}".strip() for place, those in where.items())


def _listed(names: Sequence[str]) -> str:
    if len(names) > _MAX_NAMED:
        return f"{names[0]} and {len(names) - 1} others"
    return " and ".join(names)


def _since(still_s: float) -> str:
    place = "before the first step" if SIGNS.step is None else f"at step {SIGNS.step}"
    return f"no step for {still_s:.0f} s, {place}"
