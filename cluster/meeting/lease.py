"""Who trains in a shared folder: a lease, which its holder renews as long as it lives.

Two groups of workers that can't reach each other must not both train. The folder that both can
reach decides: a group trains only while its chief holds the lease. Nobody takes the lease of a
holder that still renews it. Clocks are not compared: an observer counts its own seconds since it
last saw the lease change.

A client of NFS keeps names and folders in a cache, for a minute or so, but asks the server when it
opens a file that it knows. So files are written in place here, in one piece of fixed length, and
``refresh`` lets new ones be seen.
"""

from __future__ import annotations

import json
import math
import os
import threading
import time
import uuid
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Final

RENEW_EVERY_S: Final = 2.0
EXPIRES_S: Final = 15.0  # without a change, which others may see some seconds late
CONFIRM_S: Final = 1.0  # until a new holder checks that no other has taken the lease meanwhile
REFRESH_EVERY_S: Final = 1.0
_BYTES = 512  # of a file


class Lease:
    """A lease on a folder that all workers share.

    Args:
        path: the lease's file; its folder exists.
        rank: of this process, which others read.

    Attributes:
        renewed_s: when ``is_held`` last saw another process renew the lease (monotonic time).
    """

    def __init__(self, path: Path, rank: int) -> None:
        self.name: Final = uuid.uuid4().hex
        self._path = path
        self._rank = rank
        self._renewals = 0
        self._seen = b""  # the newest content of another's lease
        self._seen_s = 0.0  # when it was seen first
        self.renewed_s = -math.inf

    @property
    def exists(self) -> bool:
        """Whether any process has ever held the lease."""
        return self._path.exists()

    def is_held(self, ranks: Collection[int]) -> bool:
        """Returns whether another process may hold the lease; call it again and again.

        Args:
            ranks: of the workers that are here. A holder of such a rank is an earlier process of
                one of them, which is gone unless it renews the lease.
        """
        try:
            content = self._path.read_bytes()
        except FileNotFoundError:
            return False
        held = _parse(content) or {}
        if held.get("name") == self.name:
            return False
        if content != self._seen:
            if self._seen:
                self.renewed_s = time.monotonic()
            self._seen, self._seen_s = content, time.monotonic()
        since_s = self.renewed_s if held.get("rank") in ranks else self._seen_s
        return time.monotonic() - since_s < EXPIRES_S

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
            while True:
                time.sleep(RENEW_EVERY_S)
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


class Folder:
    """A folder on a file system that all workers share, with a file for each of them.

    Args:
        path: created if missing.
        rank: of this process.
    """

    def __init__(self, path: Path, rank: int) -> None:
        path.mkdir(parents=True, exist_ok=True)
        self._probe = path / f".{rank}.{os.getpid()}"
        self._refreshed_s = float("-inf")

    def refresh(self) -> None:
        """Lets this machine see files that others have made, if it has not done so just now."""
        if time.monotonic() - self._refreshed_s > REFRESH_EVERY_S:
            self._probe.touch()  # what changes a folder makes the machine ask for its newest state
            self._probe.unlink()
            self._refreshed_s = time.monotonic()


def read(path: Path) -> dict[str, object] | None:
    """Returns the object that a file contains; None if there is no such file or object."""
    try:
        return _parse(path.read_bytes())
    except OSError:
        return None


def write(path: Path, content: dict[str, object]) -> None:
    """Replaces the object that a file contains."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT, 0o644)
    try:
        os.pwrite(descriptor, json.dumps(content).encode().ljust(_BYTES), 0)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _parse(content: bytes) -> dict[str, object] | None:
    try:
        parsed = json.loads(content)
    except ValueError:
        return None
    return parsed if isinstance(parsed, dict) else None
