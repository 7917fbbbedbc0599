"""Who trains in a shared folder: a lease, which its holder renews as long as it lives.

Two groups of workers that can't reach each other must not both train. The folder that both can
reach decides: a group trains only while its chief holds the lease. Nobody takes the lease of a
holder that still renews it. Clocks are not compared: an observer counts its own seconds since it
last saw the lease change.
"""

from __future__ import annotations

import json
import os
import threading
import time
import uuid
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Final

RENEW_EVERY_S: Final = 2.0
EXPIRES_S: Final = (
    15.0  # without a change; file systems of networks show changes after some seconds
)
CONFIRM_S: Final = 1.0  # until a new holder checks that no other has taken the lease meanwhile


class Lease:
    """A lease on a folder that all workers share.

    Args:
        path: the lease's file; its folder exists.
        rank: of this process, which others read.
    """

    def __init__(self, path: Path, rank: int) -> None:
        self.name: Final = uuid.uuid4().hex
        self._path = path
        self._rank = rank
        self._renewals = 0
        self._seen: object = None  # the newest content of another's lease
        self._seen_s = 0.0  # when it was seen first
        self._has_ended = threading.Event()

    @property
    def exists(self) -> bool:
        """Whether any process has ever held the lease."""
        return self._path.exists()

    def is_held(self, ranks: Collection[int]) -> bool:
        """Returns whether another process may hold the lease; call it again and again.

        Args:
            ranks: of the workers that are here. A holder of such a rank was an earlier process of
                one of them, which is gone.
        """
        held = read(self._path)
        if held is None or held.get("name") == self.name or held.get("rank") in ranks:
            return False
        if held != self._seen:
            self._seen, self._seen_s = held, time.monotonic()
        return time.monotonic() - self._seen_s < EXPIRES_S

    def take(self) -> bool:
        """Takes the lease; returns whether it still is this process's after ``CONFIRM_S``."""
        self._write()
        time.sleep(CONFIRM_S)
        return self.is_own()

    def is_own(self) -> bool:
        """Returns whether this process holds the lease."""
        held = read(self._path)
        return held is not None and held.get("name") == self.name

    def keep(self, on_lost: Callable[[], None]) -> None:
        """Renews the lease in a thread, as long as this process lives.

        Args:
            on_lost: called, once, if another process has taken the lease.
        """

        def renew() -> None:
            while not self._has_ended.wait(RENEW_EVERY_S):
                try:
                    if not self.is_own():
                        on_lost()
                        return
                    self._write()
                except OSError:
                    continue  # the folder can't be reached for a while; what is saved there checks

        threading.Thread(target=renew, name="lease", daemon=True).start()

    def _write(self) -> None:
        self._renewals += 1
        content = {"name": self.name, "rank": self._rank, "renewals": self._renewals}
        write(self._path, content)


def read(path: Path) -> dict[str, object] | None:
    """Returns the object that a file contains; None if there is no such file or object."""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def write(path: Path, content: dict[str, object]) -> None:
    """Replaces a file's content by one rename."""
    hidden = path.with_name(f".{path.name}.{os.getpid()}")
    hidden.write_text(json.dumps(content))
    hidden.rename(path)
