"""Files that a crash leaves whole, and the lock on a workdir. Standard library only."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from tfdp.errors import WorkdirInUse


def own(workdir: Path) -> int:
    """Takes a workdir for this process, until it ends.

    Returns:
        The descriptor that holds the lock; keep it open.

    Raises:
        WorkdirInUse: if another process has it.
    """
    workdir.mkdir(parents=True, exist_ok=True)
    lock = os.open(workdir / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        raise WorkdirInUse(
            f"another run uses --workdir={workdir}: wait for it, stop it, or take another folder"
        ) from None
    return lock


def write_whole(path: Path, text: str) -> None:
    """Writes a file so that readers see the old content or the new one, never half."""
    hidden = path.with_name(f".{path.name}.{os.getpid()}")
    write_durably(hidden, text.encode())
    hidden.rename(path)
    sync_folder(path.parent)


def write_durably(path: Path, data: bytes) -> None:
    """Writes a new file that is on the disk when this returns."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Makes renames in ``folder`` last through a crash of the machine."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
