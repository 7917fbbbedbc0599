"""Digests that identify data: cheap to compute, and equal on all machines."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from typing import Any

import numpy as np


def sha256_of(*values: Any) -> str:
    """Returns the sha256 of values: of an array's content, a list's items, any other's ``repr``."""
    digest = hashlib.sha256()
    for value in values:
        if isinstance(value, np.ndarray):
            digest.update(f"{value.dtype.newbyteorder('<').str}{value.shape}".encode())
            array = np.ascontiguousarray(value.astype(value.dtype.newbyteorder("<"), copy=False))
            if array.size and array.itemsize:
                digest.update(array.reshape(-1).view(np.uint8).data)  # without a copy: it is large
        elif isinstance(value, list):
            digest.update("".join(["[", *map(sha256_of, value), "]"]).encode())
        else:
            digest.update(repr(value).encode())
        digest.update(b";")
    return digest.hexdigest()


def names_and_sizes(paths: Sequence[str]) -> list[tuple[str, int]]:
    """Returns each file's name below the folder common to all, and its bytes (-1 if unknown)."""
    common = os.path.dirname(os.path.commonprefix(list(paths)))  # noqa: PTH120, RUF071
    return [(path[len(common) :], _size_bytes(path)) for path in paths]


def _size_bytes(path: str) -> int:
    try:
        return os.stat(path).st_size  # noqa: PTH116 (there may be a million)
    except OSError:
        return -1
