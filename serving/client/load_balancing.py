"""Selects the replica of each call."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable, Collection, Sequence
from typing import Final

_FIRST_EXCLUSION_S: Final = 0.5
_MAX_EXCLUSION_S: Final = 10.0


class LoadBalancer:
    """Selects replicas in turn, and excludes one that fails for a while, longer each time.

    No thread checks an excluded replica. When its time is up, it gets a call. By then its channel
    has connected, or refuses at once, and the call goes to another replica.

    Args:
        targets: addresses of the replicas.
        clock: returns seconds that never go back.
    """

    def __init__(self, targets: Sequence[str], clock: Callable[[], float] = time.monotonic) -> None:
        self.targets = tuple(targets)
        self._clock = clock
        # A random start: clients that start together should not all call the first replica.
        self._turns = itertools.count(os.urandom(1)[0])
        self._failures = [0] * len(self.targets)
        self._excluded_until = [0.0] * len(self.targets)

    def pick(self, tried: Collection[int]) -> int:
        """Returns the index of the next replica, if possible not one that a call has tried."""
        if len(self.targets) == 1:
            return 0
        now = self._clock()
        untried = [index for index in range(len(self.targets)) if index not in tried]
        choice = (
            [index for index in untried if self._excluded_until[index] <= now]
            or untried
            or range(len(self.targets))
        )
        return choice[next(self._turns) % len(choice)]

    def record_success(self, index: int) -> None:
        """Notes that a replica has answered."""
        if self._failures[index]:
            self._failures[index] = 0
            self._excluded_until[index] = 0.0

    def record_failure(self, index: int) -> None:
        """Notes that a replica was unavailable."""
        self._failures[index] += 1
        doublings = min(10, self._failures[index] - 1)
        exclusion_s = min(_MAX_EXCLUSION_S, _FIRST_EXCLUSION_S * 2**doublings)
        self._excluded_until[index] = self._clock() + exclusion_s
