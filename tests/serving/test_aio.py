"""AsyncClient: that it waits as asyncio does; what its calls do is tested with Client."""

from __future__ import annotations

import asyncio
import inspect
import threading
import time
from collections.abc import Iterator
from typing import Any

import grpc
import numpy as np
import pytest

from serving.client import (
    AsyncClient,
    Cancelled,
    Client,
    DeadlineExceeded,
    InvalidInput,
    InvalidRequest,
)
from tests.serving.scripted_server import Server, echo, refusal, signatures, states

X = np.zeros((1, 3), np.float32)


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    server.answers = {
        "Predict": echo,
        "GetModelMetadata": signatures(x=1),
        "GetModelStatus": states((1, "AVAILABLE", "")),
    }
    yield server
    server.stop()


def test_has_the_methods_of_client():
    def public(client: type[Any]) -> dict[str, Any]:
        return {name: value for name, value in vars(client).items() if name[0] != "_"}

    ours, theirs = public(AsyncClient), public(Client)
    assert ours.keys() == theirs.keys()
    for name in ours.keys() - {"close"}:
        assert inspect.signature(ours[name]) == inspect.signature(theirs[name])
        assert ours[name].__doc__ and inspect.iscoroutinefunction(ours[name])
    made = [inspect.signature(client).parameters.keys() for client in (AsyncClient, Client)]
    assert made[0] == made[1]


def test_another_event_loop_is_refused(server: Server):
    client = AsyncClient(server.target)
    asyncio.run(client.predict("m", X))
    with pytest.raises(InvalidInput, match="AsyncClient in each loop"):
        asyncio.run(client.predict("m", X))
    asyncio.run(client.close())


def test_failures_are_clients_errors(server: Server):
    async def main() -> None:
        async with AsyncClient(server.target) as client:
            server.answers["Predict"] = refusal(grpc.StatusCode.INVALID_ARGUMENT, "bad op")
            with pytest.raises(InvalidRequest, match=f"{server.target}.*bad op"):
                await client.predict("m", X)

            def flaky(data: bytes, context: grpc.ServicerContext) -> bytes:
                if server.calls.count("Predict") < 4:
                    context.abort(grpc.StatusCode.UNAVAILABLE, "not now")
                return echo(data, context)

            server.answers["Predict"] = flaky
            await client.predict("m", X)
            assert server.calls.count("Predict") == 4
        with pytest.raises(InvalidInput, match="closed"):
            await client.predict("m", X)

    asyncio.run(main())


def test_deadlines_cancelling_and_closing_end_a_call(server: Server):
    release, begun = threading.Event(), threading.Event()

    def answer(data: bytes, context: grpc.ServicerContext) -> bytes:
        begun.set()
        release.wait(20)
        return echo(data, context)

    server.answers["Predict"] = answer

    async def under_way(client: AsyncClient) -> asyncio.Task[Any]:
        begun.clear()
        task = asyncio.ensure_future(client.predict("m", X))
        assert await asyncio.to_thread(begun.wait, 10)
        return task

    async def main() -> None:
        client = AsyncClient(server.target)
        start = time.monotonic()
        with pytest.raises(TimeoutError) as caught:
            await client.predict("m", X, timeout_s=0.2)
        assert type(caught.value) is DeadlineExceeded
        assert time.monotonic() - start < 5
        cancelled = await under_way(client)
        assert (await client.status("m"))[0].version == 1  # calls do not wait for each other
        cancelled.cancel()
        with pytest.raises(asyncio.CancelledError):
            await cancelled
        closed = await under_way(client)
        await client.close()
        with pytest.raises(Cancelled, match="client was closed"):
            await closed

    asyncio.run(main())
    release.set()


def test_interceptors_see_every_call(server: Server):
    seen: list[bytes] = []

    class Interceptor(grpc.aio.UnaryUnaryClientInterceptor):
        async def intercept_unary_unary(self, go_on: Any, details: Any, request: Any) -> Any:
            seen.append(details.method)
            return await go_on(details, request)

    async def main() -> None:
        async with AsyncClient(server.target, interceptors=[Interceptor()]) as client:
            await client.predict("m", X)

    asyncio.run(main())
    assert len(seen) == 2
