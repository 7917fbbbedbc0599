"""The client for asyncio; what its calls do is ``Client``'s."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Coroutine, Mapping, Sequence
from types import TracebackType
from typing import Any, Concatenate, ParamSpec, TypeVar

import grpc
import grpc.aio

from serving.client import methods
from serving.client.attempts import Call, Pause, Plan
from serving.client.connection import Connection, Tls
from serving.client.errors import InvalidInput
from serving.client.methods import Method
from serving.client.plans import Plans

P = ParamSpec("P")
T = TypeVar("T")


def _awaits(
    plan: Callable[Concatenate[Plans, P], Plan[T]],
) -> Callable[Concatenate[AsyncClient, P], Coroutine[Any, Any, T]]:
    """A method that carries out a plan."""

    @functools.wraps(plan)
    async def method(self: AsyncClient, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return await self._carry_out(plan(self._plans, *args, **kwargs))

    return method


class AsyncClient:
    """Calls a model server, or several replicas of it, from one event loop.

    Connects with the first call; disconnects at the end of ``async with``. Arguments, methods and
    errors are those of ``Client``; interceptors are ``grpc.aio``'s. After a fork only a client that
    has made no call yet can be used.
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
        self._plans = Plans(self._connection.targets, timeout_s, retries, check)
        self._channels: list[grpc.aio.Channel] = []
        self._calls: list[dict[Method, Callable[..., Any]]] = []
        self._closed = False

    predict = _awaits(Plans.predict)
    classify = _awaits(Plans.classify)
    regress = _awaits(Plans.regress)
    metadata = _awaits(Plans.metadata)
    status = _awaits(Plans.status)
    reload = _awaits(Plans.reload)
    wait_until_ready = _awaits(Plans.wait_until_ready)

    async def close(self) -> None:
        """Ends calls under way (they raise Cancelled) and closes the connections."""
        self._closed = True
        for channel in self._channels:
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

    async def _carry_out(self, plan: Plan[T]) -> T:
        try:
            step = next(plan)
            while True:
                if isinstance(step, Pause):
                    await asyncio.sleep(step.seconds)
                    step = plan.send(None)
                    continue
                failure = None
                try:
                    answer = await self._call(step)
                except grpc.RpcError as error:
                    failure = self._plans.attempts.failure(step, error.code(), error.details())
                step = plan.throw(failure) if failure else plan.send(answer)
        except StopIteration as done:
            value: T = done.value
            return value

    async def _call(self, call: Call) -> Any:
        """The one place that makes a call."""
        if self._is_closed():
            where = self._connection.targets[call.replica]
            raise InvalidInput(f"the client of {where}: it is closed")
        if not self._channels:
            self._open()
        try:
            return await self._calls[call.replica][call.method](
                call.request, timeout=call.timeout_s, metadata=self._connection.headers
            )
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if (task and task.cancelling()) or not self._is_closed():
                raise
        # Not the caller's doing: gRPC ends calls so when their channel is closed.
        details = "the client was closed"
        raise self._plans.attempts.failure(call, grpc.StatusCode.CANCELLED, details)

    def _is_closed(self) -> bool:
        return self._closed

    def _open(self) -> None:
        """Channels belong to the event loop that runs when they are made."""
        connection = self._connection
        for target in connection.targets:
            options, interceptors = connection.options, connection.interceptors
            if connection.credentials is None:
                channel = grpc.aio.insecure_channel(target, options, interceptors=interceptors)
            else:
                channel = grpc.aio.secure_channel(
                    target, connection.credentials, options, interceptors=interceptors
                )
            self._channels.append(channel)
            self._calls.append({method: channel.unary_unary(method.path) for method in methods.ALL})
