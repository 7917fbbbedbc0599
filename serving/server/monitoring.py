"""The HTTP port that Prometheus reads metrics from."""

from __future__ import annotations

import contextlib
import http.server
import socket
import socketserver
import threading
from collections.abc import Callable

_TIMEOUT_S = 5.0  # for a request to come in and its answer to be taken


class Pages(socketserver.TCPServer):
    """An HTTP server of one page, listening but not started yet; anything else is a 404.

    It serves one caller at a time: those who come meanwhile wait in the kernel, and one who
    dawdles is cut off.

    Args:
        host: address to listen on.
        port: 0 picks a free one.
        path: where the page is.

    Raises:
        OSError: the port can't be had.
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
        """Answers in the background, with what ``page`` makes."""
        self.page = page
        threading.Thread(target=self.serve_forever, name="metrics", daemon=True).start()

    def handle_error(self, *_: object) -> None:
        """A caller who hung up is no news."""


class _Handler(http.server.BaseHTTPRequestHandler):
    server: Pages

    def setup(self) -> None:
        super().setup()
        self._limit = threading.Timer(_TIMEOUT_S, self._cut_off)
        self._limit.daemon = True
        self._limit.start()

    def finish(self) -> None:
        self._limit.cancel()
        super().finish()

    def do_GET(self) -> None:
        found = self.path.partition("?")[0] == self.server.path
        text = self.server.page() if found else f"only {self.server.path} is served here\n"
        body = text.encode()
        self.send_response(200 if found else 404)
        self.send_header("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def version_string(self) -> str:
        return "serving.server"

    def log_message(self, *_: object) -> None:
        pass

    def _cut_off(self) -> None:
        with contextlib.suppress(OSError):  # gone by itself
            self.connection.shutdown(socket.SHUT_RDWR)
