"""Writes files so that a crash leaves the old or the new content; owns a workdir. No TensorFlow."""

from __future__ import annotations

import fcntl
import os
import uuid
from pathlib import Path

from tfdp.errors import Replaced, WorkdirInUse


def lock_workdir(workdir: Path, *, is_shared: bool = False, name: str = "--workdir=") -> int:
    """Locks a workdir for this process, until the process ends.

    Args:
        workdir: created if missing.
        is_shared: whether other processes may have such a lock too; none has one that is not.
        name: what stands before the folder in the error's message.

    Returns:
        The file descriptor that holds the lock; keep it open.

    Raises:
        WorkdirInUse: if another process has locked it.
    """
    workdir.mkdir(parents=True, exist_ok=True)
    lock = os.open(workdir / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(lock, (fcntl.LOCK_SH if is_shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        raise WorkdirInUse(
            f"another run uses {name}{workdir}: wait for it, stop it, or take another folder"
        ) from None
    return lock


class Claim:
    """This process's claim to be the latest owner of a workdir.

    The lock of ``lock_workdir`` holds on one machine. On a shared file system, a frozen chief may
    wake up after a chief on another machine has taken over its run. So each owner writes a unique
    name into the workdir, and checks it before any of its files may appear there.

    Args:
        workdir: an existing folder.
        error: what ``check`` raises.
    """

    def __init__(self, workdir: Path, error: type[Replaced] = Replaced) -> None:
        self.name = uuid.uuid4().hex
        self._error = error
        self._path = workdir / ".owner"
        write_whole(self._path, self.name)

    def check(self) -> None:
        """Raises Replaced if another process has claimed the workdir meanwhile."""
        if self._path.read_text() != self.name:
            raise self._error(
                f"another process goes on with the run in {self._path.parent}: this one, which "
                "must have been frozen meanwhile, writes nothing more there"
            )


def write_whole(path: Path, text: str) -> None:
    """Replaces a file by one rename: readers see the old content or the new one."""
    hidden = path.with_name(f".{path.name}.{os.getpid()}")
    write_durably(hidden, text.encode())
    hidden.rename(path)
    sync_folder(path.parent)


def write_durably(path: Path, data: bytes) -> None:
    """Writes a file and returns when it is on the disk."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def sync_tree(folder: Path) -> None:
    """Returns when all files in ``folder`` are on the disk, no matter which process wrote them."""
    for path in folder.rglob("*"):
        _sync(path)
    _sync(folder)


def sync_file(path: Path) -> None:
    """Returns when a file is on the disk, no matter how it was written."""
    _sync(path)


def sync_folder(folder: Path) -> None:
    """Returns when renames in ``folder`` are on the disk and survive a crash of the machine."""
    _sync(folder)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
