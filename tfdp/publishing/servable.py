"""Versions of a servable: a folder appears by one rename, and goes by one.

Readers see whole versions only. A publisher may be killed at any instant, several may publish into
one folder at once, and none takes a number that another has.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import uuid
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from tfdp.errors import BadInput
from tfdp.files import sync_folder, sync_tree
from tfdp.log import say

ABOUT = "tfdp.json"  # beside saved_model.pb: where a version came from
_DRAFT = ".unpublished-"  # and a name that no other has; TF Serving passes over such folders
_REMOVED = ".removed-"


class Draft:
    """A hidden folder beside the versions, of this process alone, that may become the next one.

    The kernel's lock on it tells others that its publisher is alive; what publishers left that were
    killed is removed on the way. Use it in a ``with`` block, which removes what was not published.

    Args:
        folder: the servable's; there already.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        _sweep(folder)
        while True:
            self.path = folder / f"{_DRAFT}{uuid.uuid4().hex}"
            self.path.mkdir()
            try:
                self._lock = os.open(self.path, os.O_RDONLY)
            except FileNotFoundError:
                continue  # another one swept it before it was opened
            if _is_ours(self._lock) is not False and self.path.exists():
                return
            os.close(self._lock)  # another one swept it before it was locked

    def __enter__(self) -> Draft:
        return self

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self.path, ignore_errors=True)
        os.close(self._lock)

    def publish(self, confirm: Callable[[], None] = lambda: None) -> Path:
        """Gives it the next number, by one rename.

        Args:
            confirm: called just before; if it raises, nothing is published.
        """
        sync_tree(self.path)
        confirm()
        while True:
            path = self._folder / str(max(versions(self._folder), default=0) + 1)
            try:
                self.path.rename(path)  # fails if it is there: versions are not empty
            except OSError:
                if not path.exists():
                    raise
                continue
            sync_folder(self._folder)
            return path


def make_folder(folder: Path) -> None:
    """Makes a servable's folder; BadInput if something else is there or it can't be made."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadInput(f"versions can't be published in {folder}: {error.strerror}") from None


def versions(folder: Path) -> dict[int, Path]:
    """The versions in a servable's folder by their numbers, ascending."""
    if not folder.is_dir():
        return {}
    names = [path for path in folder.iterdir() if path.name.isascii() and path.name.isdigit()]
    return {int(path.name): path for path in sorted(names, key=lambda path: int(path.name))}


def about(version: Path) -> dict[str, Any] | None:
    """What a version says of where it came from; None if something else has written it."""
    try:
        said = json.loads((version / ABOUT).read_text())
    except (OSError, ValueError):
        return None
    return said if isinstance(said, dict) else None


def published(folder: Path, said: Mapping[str, Any]) -> Path | None:
    """The newest version whose ``tfdp.json`` has all that is ``said``, or None."""
    for path in reversed(versions(folder).values()):
        if said.items() <= (about(path) or {}).items():
            return path
    return None


def remove_old(folder: Path, keep: int, needed: Callable[[], Collection[int]]) -> None:
    """Removes all but the newest of the versions that tfdp has published.

    Args:
        folder: the servable's.
        keep: how many stay.
        needed: numbers that have to stay as well; asked before each removal.
    """
    _sweep(folder)
    ours = [number for number, path in versions(folder).items() if about(path) is not None]
    for number in ours[:-keep]:
        if number in needed():
            continue
        hidden = folder / f"{_REMOVED}{uuid.uuid4().hex}"
        try:
            versions(folder)[number].rename(hidden)
        except (KeyError, FileNotFoundError):
            continue  # another publisher has removed it
        except OSError as error:
            say(f"version {number} in {folder} can't be removed: {error.strerror}")
            return
        shutil.rmtree(hidden, ignore_errors=True)


def _sweep(folder: Path) -> None:
    """Removes what others left half written, or half removed, when they were killed."""
    for left in folder.glob(f"{_REMOVED}*"):
        shutil.rmtree(left, ignore_errors=True)
    for left in folder.glob(f"{_DRAFT}*"):
        with contextlib.suppress(OSError):
            descriptor = os.open(left, os.O_RDONLY)
            try:
                if _is_ours(descriptor):
                    shutil.rmtree(left, ignore_errors=True)
            finally:
                os.close(descriptor)


def _is_ours(descriptor: int) -> bool | None:
    """Locks a folder; False if another process has it, None where folders can't be locked (NFS)."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True
