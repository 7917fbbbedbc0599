"""Callers of a server that may not notice anything that happens to it."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable

from serving.client import Client
from tests.running import wait_until


class Callers:
    """Several callers that ask without a pause; each call goes its own way.

    Args:
        client: for all of them.
        ask: makes a call, and fails if it isn't answered as it should be.
        pause_s: between two calls of a caller.
    """

    def __init__(self, client: Client, ask: Callable[[Client], None], pause_s: float = 0.0) -> None:
        self.seen: Counter[str] = Counter()
        self._client, self._ask, self._pause_s = client, ask, pause_s
        self._done = threading.Event()
        self._threads = [threading.Thread(target=self._go_on) for _ in range(3)]

    def _go_on(self) -> None:
        while not self._done.wait(self._pause_s):
            try:
                self._ask(self._client)
                self.seen["answered"] += 1
            except Exception as error:
                self.seen[str(error)] += 1

    def went_on(self, calls: int = 100) -> None:
        """Waits for more answers; there is nothing else than answers so far."""
        until = self.seen["answered"] + calls
        wait_until(lambda: self.seen["answered"] > until or len(self.seen) > 1, 30, "calls go on")
        assert set(self.seen) == {"answered"}, self.seen

    def __enter__(self) -> Callers:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        for thread in self._threads:
            thread.join()
        self._client.close()
        assert set(self.seen) == {"answered"}, self.seen


def call_nobody(target: str) -> None:
    """Makes a call that fails; of this light module, for processes that are started for it."""
    with Client(target, check=False, retries=0) as client:
        client.predict("m", {"x": 1.0})
