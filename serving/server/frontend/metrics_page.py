"""The HTTP port that Prometheus reads metrics from."""

from __future__ import annotations

import contextlib
import http.server
import socket
import socketserver
import threading
from collections.abc import Callable

_TIMEOUT_S = 5.0  # for a request and its response together


class MetricsPageServer(socketserver.TCPServer):
    """An HTTP server of one page, which listens but does not answer yet; other paths are 404.

    It answers one request at a time. Other connections wait in the kernel, and a request that takes
    more than five seconds is closed.

    Args:
        host: address to listen on.
        port: 0 picks a free one.
        path: the page's path.

    Raises:
        OSError: the port is taken.
    """

    allow_reuse_address = True

    def __init__(self, host: str, port: int, path: str) -> None:
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self.path = path
        try:
            super().__init__((host, port), _Handler)
        except OSError as error:
            raise OSError(f"can't listen on {host}:{port} for metrics: {error.strerror}") from None
        shown = f"[{host}]" if ":" in host else host
        self.url = f"http://{shown}:{self.server_address[1]}{path}"

    def start(self, page: Callable[[], str]) -> None:
        """Answers in the background with the text that ``page`` returns."""
        self.page = page
        threading.Thread(target=self.serve_forever, name="metrics", daemon=True).start()

    def handle_error(self, *_: object) -> None:
        """Ignores callers that have closed the connection."""


class _Handler(http.server.BaseHTTPRequestHandler):
    server: MetricsPageServer

    def setup(self) -> None:
        super().setup()
        self._timeout = threading.Timer(_TIMEOUT_S, self._disconnect)
        self._timeout.daemon = True
        self._timeout.start()

    def finish(self) -> None:
        self._timeout.cancel()
        super().finish()

    def do_GET(self) -> None:
        is_page = self.path.partition("?")[0] == self.server.path
        text = self.server.page() if is_page else f"only {self.server.path} is served here\n"
        body = text.encode()
        self.send_response(200 if is_page else 404)
        self.send_header("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def version_string(self) -> str:
        return "serving.server"

    def log_message(self, *_: object) -> None:
        pass

    def _disconnect(self) -> None:
        with contextlib.suppress(OSError):  # the caller has disconnected already
            self.connection.shutdown(socket.SHUT_RDWR)
