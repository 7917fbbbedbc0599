"""The client that waits for its answers."""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Concatenate, ParamSpec, TypeVar

import grpc

from serving.client import methods
from serving.client.attempts import Call, Pause, Plan
from serving.client.connection import Connection, Tls
from serving.client.errors import InvalidInput
from serving.client.methods import Method
from serving.client.plans import Plans

P = ParamSpec("P")
T = TypeVar("T")


def _waits(
    plan: Callable[Concatenate[Plans, P], Plan[T]],
) -> Callable[Concatenate[Client, P], T]:
    """A method that carries out a plan."""

    @functools.wraps(plan)
    def method(self: Client, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return self._carry_out(plan(self._plans, *args, **kwargs))

    return method


class Client:
    """Calls a model server, or several replicas of it.

    Safe to share between threads. A process that was forked while none was in a call has
    connections of its own. Connects with the first call; disconnects at the end of ``with``.

    Args:
        target: where the server listens, as gRPC writes it: ``host:port``, ``dns:///name:port``,
            ``unix:/path``; or a list of these. Calls take turns among the targets, and among the
            addresses of a name; who does not answer is left out for a while.
        timeout_s: how long a call may take at most, all its attempts included, unless the call
            says otherwise.
        retries: how often a call is made again, after a pause, if it ended with UNAVAILABLE. Never
            done with ``reload``.
        check: hold names, dtypes and shapes against the model's metadata before sending. It is
            asked for once for each version.
        tls: ``True``, or what is to be trusted and shown; by default plain text.
        metadata: headers sent with every call.
        token: sent as ``authorization: Bearer …``, over TLS only.
        interceptors: gRPC's, for unary calls; requests and answers pass them as bytes.

    Every call raises an error of ``serving.client.errors``: InvalidInput if nothing could be sent,
    one of CallFailed's kinds if the server did not answer as wished, InvalidAnswer if what it
    answered can't be read.
    """

    def __init__(
        self,
        target: str | Sequence[str],
        *,
        timeout_s: float = 10.0,
        retries: int = 4,
        check: bool = True,
        tls: Tls | bool = False,
        metadata: Mapping[str, str | bytes] | None = None,
        token: str | None = None,
        interceptors: Sequence[grpc.UnaryUnaryClientInterceptor] = (),
    ) -> None:
        self._connection = Connection.of(target, tls, metadata or {}, token, interceptors)
        self._plans = Plans(self._connection.targets, timeout_s, retries, check)
        # By process: a child that was forked can't use its parent's channels, nor close them.
        self._channels: dict[int, _Channels] = {}
        self._closed = False

    predict = _waits(Plans.predict)
    classify = _waits(Plans.classify)
    regress = _waits(Plans.regress)
    metadata = _waits(Plans.metadata)
    status = _waits(Plans.status)
    reload = _waits(Plans.reload)
    wait_until_ready = _waits(Plans.wait_until_ready)

    def close(self) -> None:
        """Ends calls under way (they raise Cancelled) and closes the connections."""
        self._closed = True
        if channels := self._channels.pop(os.getpid(), None):
            channels.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _carry_out(self, plan: Plan[T]) -> T:
        try:
            step = next(plan)
            while True:
                if isinstance(step, Pause):
                    time.sleep(step.seconds)
                    step = plan.send(None)
                    continue
                failure = None
                try:
                    answer = self._call(step)
                except grpc.RpcError as error:
                    failure = self._plans.attempts.failure(step, error.code(), error.details())
                step = plan.throw(failure) if failure else plan.send(answer)
        except StopIteration as done:
            value: T = done.value
            return value

    def _call(self, call: Call) -> Any:
        """The one place that makes a call."""
        channels = self._channels.get(os.getpid())
        if channels is None:
            # Of threads that get here together, all use what the first one of them put there.
            channels = self._channels.setdefault(os.getpid(), _Channels(self._connection))
        try:
            if self._closed:
                raise ValueError("it is closed")
            return channels.calls[call.replica][call.method](
                call.request, timeout=call.timeout_s, metadata=self._connection.headers
            )
        except ValueError as error:  # gRPC's way to say that the channel was closed meanwhile
            where = self._connection.targets[call.replica]
            raise InvalidInput(f"the client of {where}: {error}") from None


class _Channels:
    """A channel for each target, and in it a callable for each method."""

    def __init__(self, connection: Connection) -> None:
        self._channels = [_open(connection, target) for target in connection.targets]
        self.calls: list[dict[Method, Callable[..., Any]]] = [
            {method: channel.unary_unary(method.path) for method in methods.ALL}
            for channel in self._channels
        ]

    def close(self) -> None:
        for channel in self._channels:
            channel.close()


def _open(connection: Connection, target: str) -> grpc.Channel:
    options = connection.options
    if connection.credentials is None:
        channel = grpc.insecure_channel(target, options)
    else:
        channel = grpc.secure_channel(target, connection.credentials, options)
    return grpc.intercept_channel(channel, *connection.interceptors)
