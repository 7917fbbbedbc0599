"""Versions of a servable: each is a folder that appears, and disappears, by one rename.

So readers see complete versions only. A publisher may be killed at any instant. Several publishers
may write to one folder at the same time, and never get the same version number.
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

PROVENANCE_FILE = "tfdp.json"  # beside saved_model.pb: from which run, data and code a version is
_DRAFT = ".unpublished-"  # and a unique name; TF Serving ignores such folders
_REMOVED = ".removed-"


class Draft:
    """A hidden folder beside the versions, written by this process, that may become a version.

    A lock on it, which the kernel releases when its publisher dies, protects it from removal by
    other publishers. Drafts of dead publishers are removed. Use it in a ``with`` block, which
    removes a draft that was not published.

    Args:
        folder: existing folder of the servable.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        _remove_leftovers(folder)
        while True:
            self.path = folder / f"{_DRAFT}{uuid.uuid4().hex}"
            self.path.mkdir()
            try:
                self._lock = os.open(self.path, os.O_RDONLY)
            except FileNotFoundError:
                continue  # another publisher removed it before it was opened
            if _try_lock(self._lock) is not False and self.path.exists():
                return
            os.close(self._lock)  # another publisher removed it before it was locked

    def __enter__(self) -> Draft:
        return self

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self.path, ignore_errors=True)
        os.close(self._lock)

    def publish(self, confirm: Callable[[], None] = lambda: None) -> Path:
        """Renames the draft to the next version number, and returns the version's folder.

        Args:
            confirm: called just before the rename; if it raises, nothing is published.
        """
        sync_tree(self.path)
        confirm()
        while True:
            path = self._folder / str(max(versions(self._folder), default=0) + 1)
            try:
                self.path.rename(path)  # fails if it exists: versions are not empty
            except OSError:
                if not path.exists():
                    raise
                continue
            sync_folder(self._folder)
            return path


def make_folder(folder: Path) -> None:
    """Creates a servable's folder; raises BadInput if that is impossible."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadInput(f"versions can't be published in {folder}: {error.strerror}") from None


def check_writable(folder: Path) -> None:
    """Raises BadInput if versions can't be written in a servable's folder."""
    make_folder(folder)
    try:
        with Draft(folder):
            pass
    except OSError as error:
        raise BadInput(f"versions can't be published in {folder}: {error.strerror}") from None


def versions(folder: Path) -> dict[int, Path]:
    """Returns the versions in a servable's folder by number, in ascending order."""
    if not folder.is_dir():
        return {}
    paths = [path for path in folder.iterdir() if path.name.isascii() and path.name.isdigit()]
    return {int(path.name): path for path in sorted(paths, key=lambda path: int(path.name))}


def read_provenance(version: Path) -> dict[str, Any] | None:
    """Returns the content of a version's ``tfdp.json``; None if tfdp did not write the version."""
    try:
        provenance = json.loads((version / PROVENANCE_FILE).read_text())
    except (OSError, ValueError):
        return None
    return provenance if isinstance(provenance, dict) else None


def published(folder: Path, provenance: Mapping[str, Any]) -> Path | None:
    """Returns the newest version whose ``tfdp.json`` contains all of ``provenance``, or None."""
    for path in reversed(versions(folder).values()):
        if provenance.items() <= (read_provenance(path) or {}).items():
            return path
    return None


def remove_old(folder: Path, keep: int, required: Callable[[], Collection[int]]) -> None:
    """Removes all but the newest of the versions that tfdp has published.

    Args:
        folder: folder of the servable.
        keep: number of newest versions to keep.
        required: returns further version numbers to keep; called before each removal.
    """
    _remove_leftovers(folder)
    own = [number for number, path in versions(folder).items() if read_provenance(path) is not None]
    for number in own[:-keep]:
        if number in required():
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


def _remove_leftovers(folder: Path) -> None:
    """Removes drafts, and versions being removed, of publishers that were killed."""
    for path in folder.glob(f"{_REMOVED}*"):
        shutil.rmtree(path, ignore_errors=True)
    for path in folder.glob(f"{_DRAFT}*"):
        with contextlib.suppress(OSError):
            descriptor = os.open(path, os.O_RDONLY)
            try:
                if _try_lock(descriptor):
                    shutil.rmtree(path, ignore_errors=True)
            finally:
                os.close(descriptor)


def _try_lock(descriptor: int) -> bool | None:
    """Locks a folder; returns whether it succeeded, or None if folders can't be locked (NFS)."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True
