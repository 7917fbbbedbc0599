"""Keeps the index of TFRecord files in a hidden file, so that later starts need not search.

The index file is one line of JSON (the indexed files and their state), then int64[records, 2],
little-endian, from a multiple of 64 bytes on. It appears by one rename. It is used as long as each
data file has the size and the modification time that the index file states.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import secrets
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from tfdp.data.record_index import Corruption, Index, scan
from tfdp.errors import BadInput
from tfdp.files import sync_folder, write_durably

INDEX_PREFIX = ".tfdp-index-"  # of the names of index files
_FORMAT = 1


def open_index(paths: Sequence[str], folder: Path | None, check_payloads: bool) -> Index:
    """Returns the index of files: from its index file, or from a search, which writes that file.

    Any number of workers may call it at the same time.

    Args:
        paths: the files.
        folder: folder of the index file; None uses the deepest folder that contains all files.
        check_payloads: whether to leave out records whose payload does not match its checksum,
            for which all data is read.

    Raises:
        BadInput: if the folder can't be written, a file can't be read, or is compressed.
    """
    absolute = [os.path.abspath(path) for path in paths]  # noqa: PTH100 (links stay links)
    common = os.path.commonpath([os.path.dirname(path) for path in absolute])  # noqa: PTH120
    key = {"paths": [os.path.relpath(path, common) for path in absolute]}
    if folder is not None:  # files of the same names in another folder need another index
        key["of"] = [common]
        with _explain_index_dir(folder):
            folder.mkdir(parents=True, exist_ok=True)
    else:
        folder = Path(common)
    name = hashlib.sha256(json.dumps([key, check_payloads]).encode()).hexdigest()[:16]
    index_path = folder / f"{INDEX_PREFIX}{name}"

    index = _load(index_path, paths)
    if index is not None:
        return index
    with _one_at_a_time(folder):
        index = _load(index_path, paths)  # another worker may have written it meanwhile
        if index is None:
            scanned = _scan_and_save(index_path, paths, check_payloads)
            index = _load(index_path, paths) or scanned  # mapped from the file, it takes no memory
    return index


def _load(index_path: Path, paths: Sequence[str]) -> Index | None:
    """Returns the index if its file exists, is complete, and matches the data files."""
    try:
        with index_path.open("rb") as file:
            header = json.loads(file.readline())
            offset, size = file.tell(), os.fstat(file.fileno()).st_size
            firsts = np.cumsum([0, *header["counts"]], dtype=np.int64)
            if header["format"] != _FORMAT or size - offset != 16 * firsts[-1]:
                return None
            if header["stats"] != [_size_and_mtime(path) for path in paths]:
                return None
            spans = np.zeros([0, 2], np.int64)
            if firsts[-1]:
                spans = np.memmap(file, "<i8", "r", offset, (int(firsts[-1]), 2))
    except (OSError, ValueError, KeyError, TypeError):
        return None
    corruptions = [
        Corruption(paths[number], offset, reason) for number, offset, reason in header["faults"]
    ]
    return Index(tuple(paths), spans, firsts, tuple(corruptions))


def _scan_and_save(index_path: Path, paths: Sequence[str], check_payloads: bool) -> Index:
    hidden = index_path.with_name(f"{index_path.name}.{secrets.token_hex(8)}")
    with _explain_index_dir(index_path.parent):
        hidden.touch(exist_ok=False)  # fails before the search if the folder can't be written
    try:
        try:
            stats = [_size_and_mtime(path) for path in paths]
        except OSError as error:
            raise BadInput(f"{error.filename} can't be read: {error.strerror}") from None
        index = scan(paths, check_payloads)
        numbers = {path: number for number, path in enumerate(paths)}
        header = {
            "format": _FORMAT,
            "stats": stats,
            "counts": index.counts.tolist(),
            "faults": [
                [numbers[corruption.path], corruption.offset, corruption.reason]
                for corruption in index.corruptions
            ],
        }
        line = json.dumps(header).encode()
        padded = line.ljust(-(-(len(line) + 1) // 64) * 64 - 1) + b"\n"
        with _explain_index_dir(index_path.parent):
            write_durably(hidden, padded + index.spans.astype("<i8").tobytes())
            hidden.rename(index_path)
            sync_folder(index_path.parent)
        return index
    finally:
        hidden.unlink(missing_ok=True)


def _size_and_mtime(path: str) -> list[int]:
    status = os.stat(path)  # noqa: PTH116
    return [status.st_size, status.st_mtime_ns]


@contextlib.contextmanager
def _explain_index_dir(folder: Path) -> Iterator[None]:
    """Turns an OSError into a BadInput that names ``index_dir``."""
    try:
        yield
    except OSError as error:
        raise BadInput(
            f"the index of the TFRecord files can't be kept in {folder}: {error.strerror}; "
            "give index_dir=, a folder that can be written and that is not deleted, so that the "
            "next start need not search"
        ) from None


@contextlib.contextmanager
def _one_at_a_time(folder: Path) -> Iterator[None]:
    """Lets one worker search while others wait. Where folders can't be locked, all search."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        yield  # a write to the folder will raise the error
        return
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
