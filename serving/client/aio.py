"""The client for asyncio, with the same operations as ``Client``."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Coroutine, Mapping, Sequence
from types import TracebackType
from typing import Any, Concatenate, ParamSpec, TypeVar

import grpc
import grpc.aio

from serving.client.channels import Route
from serving.client.connection import Connection, Options, Tls
from serving.client.errors import CallFailed, InvalidInput
from serving.client.operations import Operations
from serving.client.retries import Call, Pause, Steps

P = ParamSpec("P")
T = TypeVar("T")


def _awaiting(
    operation: Callable[Concatenate[Operations, P], Steps[T]],
) -> Callable[Concatenate[AsyncClient, P], Coroutine[Any, Any, T]]:
    """Returns a coroutine method that runs an operation."""

    @functools.wraps(operation)
    async def method(self: AsyncClient, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return await self._run(operation(self._operations, *args, **kwargs))

    return method


class AsyncClient:
    """Calls a model server, or several replicas of it, from one event loop.

    The first call connects; the end of ``async with`` disconnects. Arguments, methods and errors
    are those of ``Client``; interceptors are ``grpc.aio``'s. After a fork, only a client that has
    made no call before can be used.
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
        interceptors: Sequence[grpc.aio.UnaryUnaryClientInterceptor] = (),
    ) -> None:
        self._connection = Connection.of(target, tls, metadata or {}, token, interceptors)
        self._operations = Operations(
            self._connection.targets, self._connection.proxies, timeout_s, retries, check
        )
        self._routes: list[Route] = []
        self._loop: asyncio.AbstractEventLoop | None = None  # the channels belong to it
        self._closed = False

    predict = _awaiting(Operations.predict)
    classify = _awaiting(Operations.classify)
    regress = _awaiting(Operations.regress)
    metadata = _awaiting(Operations.metadata)
    status = _awaiting(Operations.status)
    reload = _awaiting(Operations.reload)
    wait_until_ready = _awaiting(Operations.wait_until_ready)

    async def close(self) -> None:
        """Cancels calls under way (they raise Cancelled) and closes the connections."""
        self._closed = True
        for route in self._routes:
            for channel in route.opened():
                await channel.close()

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def _run(self, steps: Steps[T]) -> T:
        try:
            step = next(steps)
            while True:
                if isinstance(step, Pause):
                    await asyncio.sleep(step.seconds)
                    step = steps.send(None)
                    continue
                failure = None
                try:
                    answer = await self._call(step)
                except grpc.RpcError as error:
                    failure = self._failure(step, error.code(), error.details())
                step = steps.throw(failure) if failure else steps.send(answer)
        except StopIteration as done:
            value: T = done.value
            return value

    async def _call(self, call: Call) -> Any:
        """Makes a call; no other code does."""
        targets, loop = self._connection.targets, asyncio.get_running_loop()
        if self._is_closed():
            raise InvalidInput(f"the client of {targets[call.replica]}: it is closed")
        if not self._routes:
            self._loop = loop
            self._routes = [Route(self._connection, t, self._open_channel) for t in targets]
        if loop is not self._loop:
            raise InvalidInput(
                f"the client of {targets[call.replica]} was used in another event loop before: "
                "make an AsyncClient in each loop"
            )
        route = self._routes[call.replica]
        try:
            channel = route.channel()
            return await channel.calls[call.method](
                call.request, timeout=call.timeout_s, metadata=self._connection.headers
            )
        except grpc.RpcError as error:
            if error.code() is grpc.StatusCode.UNAVAILABLE:
                route.note_failure()
            raise
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if (task and task.cancelling()) or not self._is_closed():
                raise
        # The caller did not cancel: gRPC raises CancelledError also if the channel is closed.
        details = "the client was closed"
        raise self._failure(call, grpc.StatusCode.CANCELLED, details)

    def _failure(self, call: Call, code: grpc.StatusCode, details: str | None) -> CallFailed:
        return self._operations.caller.failure(call.replica, call.method, call.model, code, details)

    def _is_closed(self) -> bool:
        return self._closed

    def _open_channel(self, target: str, options: Options) -> grpc.aio.Channel:
        credentials, interceptors = self._connection.credentials, self._connection.interceptors
        if credentials is None:
            return grpc.aio.insecure_channel(target, options, interceptors=interceptors)
        return grpc.aio.secure_channel(target, credentials, options, interceptors=interceptors)
