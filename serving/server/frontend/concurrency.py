"""Limits how many calls are worked on at the same time; further calls wait."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence
from typing import Any

import grpc

TOO_LATE = "Deadline exceeded while the call waited for its turn"


class Turns:
    """Lets a number of calls work at the same time, whatever way they come in.

    Args:
        max_calls: that number.
    """

    def __init__(self, max_calls: int) -> None:
        # Much faster than a semaphore.
        self._tokens: queue.SimpleQueue[None] = queue.SimpleQueue()
        for _ in range(max_calls):
            self._tokens.put(None)

    def take(self, time_left_s: Callable[[], float | None]) -> bool:
        """Waits for a turn; returns False if the deadline passes first."""
        try:
            self._tokens.get_nowait()
        except queue.Empty:
            # gRPC's 300 billion years without a deadline are more than a lock's timeout can be.
            left_s = time_left_s()
            timeout_s = None if left_s is None else max(0.0, min(left_s, threading.TIMEOUT_MAX))
            try:
                self._tokens.get(timeout=timeout_s)
            except queue.Empty:
                return False
        return True

    def give_back(self) -> None:
        """Ends a turn."""
        self._tokens.put(None)


def limit_concurrency(
    handlers: Sequence[grpc.GenericRpcHandler], service: str, turns: Turns
) -> grpc.GenericRpcHandler:
    """Returns a handler whose calls of a service wait for their turn.

    Further calls wait; TF Serving refuses them. A call whose deadline passes while it waits is not
    worked on.

    Args:
        handlers: of this service, whose methods are unary, and of others, which are not limited.
        service: the service's full name.
        turns: of its calls.
    """

    def with_turn(answer: Callable[..., Any]) -> Callable[..., Any]:
        def wait_and_answer(request: Any, context: grpc.ServicerContext) -> Any:
            if not turns.take(context.time_remaining):
                context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, TOO_LATE)
            try:
                return answer(request, context)
            finally:
                turns.give_back()

        return wait_and_answer

    def limited(name: str, method: grpc.RpcMethodHandler) -> grpc.RpcMethodHandler:
        if not name.startswith(f"/{service}/"):
            return method
        return grpc.unary_unary_rpc_method_handler(
            with_turn(method.unary_unary), method.request_deserializer, method.response_serializer
        )

    methods: dict[str, grpc.RpcMethodHandler] = {}  # only of methods that exist

    class LimitedHandler(grpc.GenericRpcHandler):
        def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
            name = details.method
            method = methods.get(name)
            if method is None:
                candidates = (handler.service(details) for handler in handlers)
                method = next(filter(None, candidates), None)
                if method is not None:
                    methods[name] = method = limited(name, method)
            return method

    return LimitedHandler()
