"""Which of several replicas a call goes to."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable, Collection, Sequence
from typing import Final

_FIRST_OUT_S: Final = 0.5
_LONGEST_OUT_S: Final = 10.0


class Replicas:
    """Takes turns, and leaves out for a while who did not answer: longer each time.

    No thread watches them. When its time is up a replica gets one of the calls; it has connected by
    then, or refuses at once and the call goes on to another.

    Args:
        targets: where they listen.
        clock: seconds that never go back.
    """

    def __init__(self, targets: Sequence[str], clock: Callable[[], float] = time.monotonic) -> None:
        self.targets = tuple(targets)
        self._clock = clock
        # Many clients that start at once should not all begin with the first.
        self._turns = itertools.count(os.urandom(1)[0])
        self._failures = [0] * len(self.targets)
        self._out_until = [0.0] * len(self.targets)

    def pick(self, tried: Collection[int]) -> int:
        """The index of the next one, if possible none of those that a call has tried already."""
        if len(self.targets) == 1:
            return 0
        now = self._clock()
        untried = [index for index in range(len(self.targets)) if index not in tried]
        choice = (
            [index for index in untried if self._out_until[index] <= now]
            or untried
            or range(len(self.targets))
        )
        return choice[next(self._turns) % len(choice)]

    def answered(self, index: int) -> None:
        """A server is there."""
        if self._failures[index]:
            self._failures[index] = 0
            self._out_until[index] = 0.0

    def failed(self, index: int) -> None:
        """Nobody answered, or the server said that it can't."""
        self._failures[index] += 1
        out_s = min(_LONGEST_OUT_S, _FIRST_OUT_S * 2 ** min(10, self._failures[index] - 1))
        self._out_until[index] = self._clock() + out_s
