"""The client whose methods block until the answer is there."""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Concatenate, ParamSpec, TypeVar

import grpc

from serving.client.channels import Route
from serving.client.connection import Connection, Options, Tls
from serving.client.errors import CallFailed, InvalidInput
from serving.client.operations import Operations
from serving.client.retries import Call, Pause, Steps

P = ParamSpec("P")
T = TypeVar("T")


def _blocking(
    operation: Callable[Concatenate[Operations, P], Steps[T]],
) -> Callable[Concatenate[Client, P], T]:
    """Returns a method that runs an operation and blocks until its end."""

    @functools.wraps(operation)
    def method(self: Client, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return self._run(operation(self._operations, *args, **kwargs))

    return method


class Client:
    """Calls a model server, or several replicas of it.

    Safe to share between threads. It can also be used after a fork, if no thread was in a call at
    that moment: the new process opens connections of its own. The first call connects; the end of
    ``with`` disconnects.

    Args:
        target: the server's address in gRPC's form: ``host:port``, ``dns:///name:port``,
            ``unix:/path``; or a list of these. Calls go in turn to the targets, and to the
            addresses of a name; one that does not answer is excluded for a while.
        timeout_s: default time limit of a call, all its attempts included.
        retries: largest number of repetitions, after pauses, of a call that ended with UNAVAILABLE.
            A ``reload`` is never repeated.
        check: whether names, dtypes and shapes are checked against the model's metadata before a
            request is sent. The metadata is requested once for each version.
        tls: ``True``, or the certificates to use; by default no encryption.
        metadata: headers sent with every call.
        token: sent as ``authorization: Bearer …``, over TLS only.
        interceptors: gRPC's, for unary calls; requests and answers are bytes.

    Every method raises errors of ``serving.client.errors``: InvalidInput if the request can't be
    sent, a subclass of CallFailed if the server did not answer or answered with an error,
    InvalidAnswer if the answer can't be decoded.
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
        self._operations = Operations(
            self._connection.targets, self._connection.proxies, timeout_s, retries, check
        )
        # By process id: a forked child can neither use nor close its parent's channels.
        self._routes: dict[int, list[Route]] = {}
        self._closed = False

    predict = _blocking(Operations.predict)
    classify = _blocking(Operations.classify)
    regress = _blocking(Operations.regress)
    metadata = _blocking(Operations.metadata)
    status = _blocking(Operations.status)
    reload = _blocking(Operations.reload)
    wait_until_ready = _blocking(Operations.wait_until_ready)

    def close(self) -> None:
        """Cancels calls under way (they raise Cancelled) and closes the connections."""
        self._closed = True
        for route in self._routes.pop(os.getpid(), []):
            for channel in route.opened():
                channel.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _run(self, steps: Steps[T]) -> T:
        try:
            step = next(steps)
            while True:
                if isinstance(step, Pause):
                    time.sleep(step.seconds)
                    step = steps.send(None)
                    continue
                failure = None
                try:
                    answer = self._call(step)
                except grpc.RpcError as error:
                    failure = self._failure(step, error.code(), error.details())
                step = steps.throw(failure) if failure else steps.send(answer)
        except StopIteration as done:
            value: T = done.value
            return value

    def _failure(self, call: Call, code: grpc.StatusCode, details: str | None) -> CallFailed:
        return self._operations.caller.failure(call.replica, call.method, call.model, code, details)

    def _call(self, call: Call) -> Any:
        """Makes a call; no other code does."""
        routes = self._routes.get(os.getpid())
        if routes is None:
            open_channel = _opener(self._connection)
            routes = [Route(self._connection, t, open_channel) for t in self._connection.targets]
            # Threads that come here at the same time all use the first one's channels.
            routes = self._routes.setdefault(os.getpid(), routes)
        route = routes[call.replica]
        try:
            if self._closed:
                raise ValueError("it is closed")
            channel = route.channel()
            return channel.calls[call.method](
                call.request, timeout=call.timeout_s, metadata=self._connection.headers
            )
        except grpc.RpcError as error:
            if error.code() is grpc.StatusCode.UNAVAILABLE:
                route.note_failure()
            raise
        except ValueError as error:  # gRPC raises it if the channel was closed meanwhile
            where = self._connection.targets[call.replica]
            raise InvalidInput(f"the client of {where}: {error}") from None


def _opener(connection: Connection) -> Callable[[str, Options], grpc.Channel]:
    def open_channel(target: str, options: Options) -> grpc.Channel:
        if connection.credentials is None:
            channel = grpc.insecure_channel(target, options)
        else:
            channel = grpc.secure_channel(target, connection.credentials, options)
        return grpc.intercept_channel(channel, *connection.interceptors)

    return open_channel
