"""Files that a crash leaves whole, and who owns a workdir. Standard library only."""

from __future__ import annotations

import fcntl
import os
import uuid
from pathlib import Path

from tfdp.errors import Replaced, WorkdirInUse


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


class Claim:
    """That this process is the last one that began to own a workdir.

    The lock of ``own`` holds on one machine. A chief that was frozen while another machine's went
    on with its run, over a shared file system, may wake up and believe that it has it still. So
    each owner leaves a name of its own there, and looks whether it is there still before anything
    that it wrote may appear.

    Args:
        workdir: there already.
    """

    def __init__(self, workdir: Path) -> None:
        self.name = uuid.uuid4().hex
        self._path = workdir / ".owner"
        write_whole(self._path, self.name)

    def check(self) -> None:
        """Raises Replaced if another process has claimed the workdir since."""
        if self._path.read_text() != self.name:
            raise Replaced(
                f"another process goes on with the run in {self._path.parent}: this one, which "
                "must have been frozen meanwhile, writes nothing more there"
            )


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


def sync_tree(folder: Path) -> None:
    """Makes all that is in ``folder`` last, written by whomever."""
    for path in folder.rglob("*"):
        _sync(path)
    _sync(folder)


def sync_folder(folder: Path) -> None:
    """Makes renames in ``folder`` last through a crash of the machine."""
    _sync(folder)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
