"""Plans, and how a single call puts up with servers that don't answer.

A plan is a generator that yields what has to be done next (make a call, or pause) and is sent what
came of it. ``Client`` and ``AsyncClient`` carry plans out, each in its own way; what they do and in
which order is written once.
"""

from __future__ import annotations

import os
import time
from collections.abc import Generator, Sequence
from typing import Any, Final, NamedTuple, TypeVar

import grpc

from serving.client.errors import CallFailed, InvalidInput, Unavailable, call_failed
from serving.client.methods import Method
from serving.client.replicas import Replicas

FIRST_PAUSE_S: Final = 0.05
LONGEST_PAUSE_S: Final = 1.0


class Call(NamedTuple):
    """Make this call; send the answer's bytes, or throw what ``Attempts.failure`` makes of it."""

    replica: int
    method: Method
    model: str
    request: bytes
    timeout_s: float


class Pause(NamedTuple):
    """Wait for so long; send ``None``."""

    seconds: float


T = TypeVar("T")
Plan = Generator[Call | Pause, Any, T]


class Attempts:
    """Makes a call until somebody answers.

    Args:
        targets: where the replicas listen.
        retries: how often a call is made again at most.
    """

    def __init__(self, targets: Sequence[str], retries: int) -> None:
        if retries < 0:
            raise InvalidInput(f"retries={retries} has to be 0 or more")
        self.targets = tuple(targets)
        self._replicas = Replicas(self.targets)
        # With many replicas, a call may meet a dead one more often than it is allowed retries.
        self._retries = max(retries, len(self.targets)) if retries else 0

    def make(self, method: Method, model: str, request: bytes, ends: float) -> Plan[Any]:
        """The answer to a request, as a message.

        Only what ended with UNAVAILABLE is repeated (TF Serving's word for a full queue, gRPC's for
        a server that is gone), and only methods that change nothing. The other replicas are tried
        at once, and everybody again after a pause.

        Args:
            method: what is called.
            model: the model's name, for errors.
            request: the request as it travels.
            ends: the deadline, on the clock of ``time.monotonic``.

        Raises:
            CallFailed: nobody answered as wished.
            InvalidAnswer: the answer can't be read.
        """
        tried: set[int] = set()
        for attempt in range(self._retries + 1):
            replica = self._replicas.pick(tried)
            try:
                answer = yield Call(replica, method, model, request, left(ends))
            except Unavailable:
                self._replicas.failed(replica)
                if not method.repeatable or attempt == self._retries:
                    raise
            else:
                self._replicas.answered(replica)
                return method.read(answer)
            tried.add(replica)
            if len(tried) == len(self.targets):
                tried.clear()
                pause_s = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2**attempt)
                # Callers that failed together should not come back together, be they forks of one
                # process (whose ``random`` would draw alike).
                yield Pause(min(left(ends), pause_s * (0.5 + os.urandom(1)[0] / 256)))
        raise AssertionError("the last attempt answers or raises")

    def make_once(self, method: Method, model: str, request: bytes, ends: float) -> Plan[Any]:
        """As ``make``, but the first attempt counts."""
        replica = self._replicas.pick(())
        try:
            answer = yield Call(replica, method, model, request, left(ends))
        except Unavailable:
            self._replicas.failed(replica)
            raise
        return method.read(answer)

    def failure(self, call: Call, code: grpc.StatusCode, details: str | None) -> CallFailed:
        """The error of a call that ended with this status."""
        return call_failed(self.targets[call.replica], call.model, call.method.name, code, details)


def left(ends: float) -> float:
    """Seconds until ``ends``, at least one millisecond: the server then says that it's too late."""
    return max(0.001, ends - time.monotonic())
