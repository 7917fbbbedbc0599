"""Limits how many calls are worked on at the same time; further calls wait."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence
from typing import Any

import grpc


def limit_concurrency(
    handlers: Sequence[grpc.GenericRpcHandler], service: str, max_calls: int
) -> grpc.GenericRpcHandler:
    """Returns a handler that works on at most ``max_calls`` calls of a service at a time.

    Further calls wait; TF Serving refuses them. A call whose deadline passes while it waits is not
    worked on.

    Args:
        handlers: of this service, whose methods are unary, and of others, which are not limited.
        service: the service's full name.
        max_calls: largest number of its calls at the same time.
    """
    tokens: queue.SimpleQueue[None] = queue.SimpleQueue()  # much faster than a semaphore
    for _ in range(max_calls):
        tokens.put(None)

    def with_token(answer: Callable[..., Any]) -> Callable[..., Any]:
        def wait_and_answer(request: Any, context: grpc.ServicerContext) -> Any:
            try:
                tokens.get_nowait()
            except queue.Empty:
                # Without a deadline it is 300 billion years, more than a lock's timeout can be.
                left_s = min(context.time_remaining(), threading.TIMEOUT_MAX)
                try:
                    tokens.get(timeout=left_s)
                except queue.Empty:
                    text = "Deadline exceeded while the call waited for its turn"
                    context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, text)
            try:
                return answer(request, context)
            finally:
                tokens.put(None)

        return wait_and_answer

    def limited(name: str, method: grpc.RpcMethodHandler) -> grpc.RpcMethodHandler:
        if not name.startswith(f"/{service}/"):
            return method
        return grpc.unary_unary_rpc_method_handler(
            with_token(method.unary_unary), method.request_deserializer, method.response_serializer
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
