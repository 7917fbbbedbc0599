"""Makes a call, and repeats it if a server is unavailable.

The client's logic does no I/O and never waits. It consists of generators that yield the next step,
a call or a pause, and receive its result. ``Client`` and ``AsyncClient`` run the same generators,
one by blocking and one with asyncio.
"""

from __future__ import annotations

import os
import time
from collections.abc import Generator, Mapping, Sequence
from typing import Any, Final, NamedTuple, TypeVar

import grpc

from serving.client.errors import CallFailed, InvalidInput, Unavailable, call_failed
from serving.client.load_balancing import LoadBalancer
from serving.client.methods import Method

FIRST_PAUSE_S: Final = 0.05
MAX_PAUSE_S: Final = 1.0


class Call(NamedTuple):
    """A call to make. Send the answer's bytes, or throw its ``failure``."""

    replica: int
    method: Method
    model: str
    request: bytes
    timeout_s: float


class Pause(NamedTuple):
    """A pause to make. Send ``None`` afterwards."""

    seconds: float


T = TypeVar("T")
Steps = Generator[Call | Pause, Any, T]


class RetryingCaller:
    """Makes calls, and repeats those that end with UNAVAILABLE.

    Args:
        targets: addresses of the replicas.
        proxies: by target, for errors; None if calls go directly.
        retries: largest number of repetitions of a call.
    """

    def __init__(
        self, targets: Sequence[str], proxies: Mapping[str, str | None], retries: int
    ) -> None:
        if retries < 0:
            raise InvalidInput(f"retries={retries} has to be 0 or more")
        self.targets = tuple(targets)
        self._proxies = proxies
        self._balancer = LoadBalancer(self.targets)
        # With many replicas, a call may meet more dead ones than it has retries.
        self._retries = max(retries, len(self.targets)) if retries else 0

    def call(self, method: Method, model: str, request: bytes, deadline_s: float) -> Steps[Any]:
        """Returns the decoded answer to a request.

        Only a call that ends with UNAVAILABLE is repeated (TF Serving's status for a full queue,
        gRPC's for a server that is gone), and only if its method changes nothing. The other
        replicas are tried at once, and all of them again after a pause.

        Args:
            method: the method to call.
            model: the model's name, for errors.
            request: the serialized request.
            deadline_s: the time limit, on the clock of ``time.monotonic``.

        Raises:
            CallFailed: the call, or its last repetition, failed.
            InvalidAnswer: the answer can't be decoded.
        """
        tried: set[int] = set()
        for attempt in range(self._retries + 1):
            replica = self._balancer.pick(tried)
            try:
                answer = yield Call(replica, method, model, request, remaining_s(deadline_s))
            except Unavailable:
                self._balancer.record_failure(replica)
                if not method.is_repeatable or attempt == self._retries:
                    raise
            else:
                self._balancer.record_success(replica)
                return method.read(answer)
            tried.add(replica)
            if len(tried) == len(self.targets):
                tried.clear()
                pause_s = min(MAX_PAUSE_S, FIRST_PAUSE_S * 2**attempt)
                # Jitter: callers that failed together should not retry together. os.urandom,
                # because forks of one process would draw the same numbers from ``random``.
                jitter = 0.5 + os.urandom(1)[0] / 256
                yield Pause(min(remaining_s(deadline_s), pause_s * jitter))
        raise AssertionError("the last attempt returns or raises")

    def call_once(
        self, method: Method, model: str, request: bytes, deadline_s: float
    ) -> Steps[Any]:
        """Does what ``call`` does, without repetition."""
        replica = self._balancer.pick(())
        try:
            answer = yield Call(replica, method, model, request, remaining_s(deadline_s))
        except Unavailable:
            self._balancer.record_failure(replica)
            raise
        return method.read(answer)

    def failure(
        self, replica: int, method: Method, model: str, code: grpc.StatusCode, details: str | None
    ) -> CallFailed:
        """Returns the error of a call that ended with this status."""
        target = self.targets[replica]
        proxy = self._proxies.get(target)
        return call_failed(target, model, method.name, code, details, proxy)


def remaining_s(deadline_s: float) -> float:
    """Returns the seconds until a deadline, at least 0.001: then the server reports the timeout."""
    return max(0.001, deadline_s - time.monotonic())
