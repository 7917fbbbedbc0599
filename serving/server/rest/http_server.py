"""The HTTP port: REST calls and the page of metrics.

One thread reads and writes all connections; calls are answered in a pool of threads. TensorFlow is
not imported.
"""

from __future__ import annotations

import asyncio
import gzip
import json
import logging
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from aiohttp import http_exceptions, web

from serving.server.deadlines import TimeLeft

# Answers a method, path and body by an HTTP status and a body of JSON.
AnswerCall = Callable[[str, str, bytes, TimeLeft], tuple[int, bytes]]

_HEADERS_TIMEOUT_S = 5.0  # for the first request's headers
_BODY_TIMEOUT_S = 60.0
_ANSWER_TIMEOUT_S = 300.0  # until a caller has taken it
_IDLE_TIMEOUT_S = 75.0  # until the next request of a connection
_MAX_BODY_BYTES = 64 << 20  # also of what was compressed; Python's values take some 10 times that
_MAX_HELD_BYTES = 1 << 30  # of the bodies of all calls
_MAX_WAITING = 1000  # calls
_MIN_COMPRESSED_BYTES = 1024  # smaller answers are not worth the time
_CORS = {
    "Access-Control-Allow-Origin": "*",
    "Access-Control-Allow-Methods": "POST, GET",
    "Access-Control-Allow-Headers": "Content-Type",
}


class HttpServer:
    """An HTTP server that listens, but does not answer before ``start``.

    Args:
        host: address to listen on.
        port: 0 picks a free one.

    Raises:
        OSError: the port is taken.
    """

    def __init__(self, host: str, port: int) -> None:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        shown = f"[{host}]" if ":" in host else host
        try:
            self._socket = socket.create_server((host, port), family=family)
        except OSError as error:
            reason = f"{error.strerror}".partition(" (")[0]
            raise OSError(f"can't listen on {shown}:{port} for REST: {reason}") from None
        self.port: int = self._socket.getsockname()[1]
        self.url = f"http://{shown}:{self.port}"

    def start(
        self,
        metrics_path: str | None = None,
        metrics_page: Callable[[], str] = lambda: "",
        *,
        num_threads: int = 16,
        timeout_s: float = 30.0,
        has_cors: bool = False,
    ) -> None:
        """Answers in the background: metrics at once, REST calls after ``set_answer``.

        Args:
            metrics_path: the page's path; None without it.
            metrics_page: returns the page's text.
            num_threads: number of REST calls that are answered at the same time.
            timeout_s: for each call; 0 is no limit.
            has_cors: whether pages of other origins may call.
        """
        self._metrics_path, self._metrics_page = metrics_path, metrics_page
        self._num_threads, self._timeout_s = num_threads, timeout_s
        self._cors = _CORS if has_cors else {}
        self._answer: AnswerCall | None = None
        self._pool = ThreadPoolExecutor(num_threads, thread_name_prefix="rest")
        self._calls = 0  # in the pool or before it
        self._held_bytes = 0  # of bodies
        self._silent: set[Any] = set()  # connections without a request so far
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, name="http", daemon=True).start()
        asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result()

    def set_answer(self, answer: AnswerCall) -> None:
        """Answers REST calls by ``answer`` from now on."""
        self._answer = answer

    def stop(self, grace_s: float) -> None:
        """Accepts no more connections, waits for calls under way, and ends."""
        asyncio.run_coroutine_threadsafe(self._end(grace_s), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._pool.shutdown(wait=False, cancel_futures=True)

    async def _listen(self) -> None:
        logger = logging.getLogger(__name__)
        logger.addFilter(_is_servers_fault)
        app = web.Application()
        app.router.add_route("*", r"/{path:[\s\S]*}", self._handle)
        self._runner = web.AppRunner(
            app, access_log=None, keepalive_timeout=_IDLE_TIMEOUT_S, logger=logger
        )
        await self._runner.setup()
        assert self._runner.server is not None
        connect = self._runner.server

        # aiohttp has no limit of time for the headers of a connection's first request.
        def connect_with_timeout() -> asyncio.Protocol:
            connection = connect()
            self._silent.add(connection)
            self._loop.call_later(_HEADERS_TIMEOUT_S, self._close_if_silent, connection)
            return connection

        self._listener = await self._loop.create_server(connect_with_timeout, sock=self._socket)

    def _close_if_silent(self, connection: Any) -> None:
        if connection in self._silent:
            self._silent.remove(connection)
            connection.force_close()

    async def _end(self, grace_s: float) -> None:
        self._listener.close()
        assert self._runner.server is not None
        self._runner.server.pre_shutdown()
        await self._runner.server.shutdown(grace_s)
        await self._runner.cleanup()
        # aiohttp leaves tasks of connections that are closed already.
        if others := asyncio.all_tasks() - {asyncio.current_task()}:
            for task in others:
                task.cancel()
            await asyncio.wait(others, timeout=grace_s)

    async def _handle(self, request: web.Request) -> web.Response:
        self._silent.discard(request.protocol)
        response = await self._respond(request)
        try:
            async with asyncio.timeout(_ANSWER_TIMEOUT_S):
                await response.prepare(request)
                await response.write_eof()
        except TimeoutError:
            if request.transport is not None:
                request.transport.abort()
        return response

    async def _respond(self, request: web.Request) -> web.Response:
        path = request.raw_path
        if self._metrics_path is not None and path.partition("?")[0] == self._metrics_path:
            page = await self._loop.run_in_executor(None, self._metrics_page)
            kind = {"Content-Type": "text/plain; version=0.0.4; charset=utf-8"}
            return web.Response(body=page.encode(), headers={"Server": "serving.server"} | kind)
        if not path.lower().startswith("/v1/"):
            pages = "/v1/models" + (f" and {self._metrics_path}" if self._metrics_path else "")
            return self._error(404, f"only {pages} can be found here")
        if request.method == "OPTIONS" and self._cors:
            return self._response(200, b"")
        body = bytearray()
        try:
            refusal = await self._read(request, body)
            if refusal is not None:
                refusal.force_close()
                return refusal
            return await self._call(request, path, body)
        finally:
            self._held_bytes -= len(body)

    async def _read(self, request: web.Request, body: bytearray) -> web.Response | None:
        """Appends a call's body to ``body``; returns the answer if it is refused."""
        too_large = self._error(413, f"the body is larger than {_MAX_BODY_BYTES:,} bytes")
        if (request.content_length or 0) > _MAX_BODY_BYTES:
            return too_large
        try:
            async with asyncio.timeout(_BODY_TIMEOUT_S):
                async for part in request.content.iter_any():
                    body += part
                    self._held_bytes += len(part)
                    if len(body) > _MAX_BODY_BYTES:
                        return too_large
                    if self._held_bytes > _MAX_HELD_BYTES:
                        return self._error(429, f"calls have {self._held_bytes:,} bytes already")
        except TimeoutError:
            return self._error(408, f"the body took longer than {_BODY_TIMEOUT_S:.0f} seconds")
        except (web.RequestPayloadError, ValueError):
            return self._error(400, "the body can't be read, or it is not compressed as said")
        return None

    async def _call(self, request: web.Request, path: str, body: bytearray) -> web.Response:
        answer, method = self._answer, request.method
        if answer is None:
            return self._error(503, "the models are not loaded yet")
        if self._calls >= self._num_threads + _MAX_WAITING:
            return self._error(429, f"{self._calls} calls are waiting already")
        deadline_s = time.monotonic() + self._timeout_s
        accepts_gzip = "gzip" in request.headers.get("Accept-Encoding", "")

        def time_left_s() -> float | None:
            return deadline_s - time.monotonic() if self._timeout_s else None

        def compute() -> tuple[int, bytes, bool]:
            status, text = answer(method, path, bytes(body), time_left_s)
            if accepts_gzip and len(text) >= _MIN_COMPRESSED_BYTES:
                return status, gzip.compress(text, 1), True
            return status, text, False

        self._calls += 1
        try:
            status, text, is_compressed = await self._loop.run_in_executor(self._pool, compute)
        finally:
            self._calls -= 1
        response = self._response(status, text)
        if is_compressed:
            response.headers["Content-Encoding"] = "gzip"
        return response

    def _error(self, status: int, text: str) -> web.Response:
        return self._response(status, json.dumps({"error": text}).encode())

    def _response(self, status: int, body: bytes) -> web.Response:
        headers = {"Server": "serving.server", "Content-Type": "application/json", **self._cors}
        return web.Response(status=status, body=body, headers=headers)


def _is_servers_fault(record: logging.LogRecord) -> bool:
    """Returns whether a record is worth a line: callers that break HTTP, or leave, are not."""
    error = record.exc_info[1] if record.exc_info else None
    return not isinstance(error, http_exceptions.HttpProcessingError | ConnectionError)
