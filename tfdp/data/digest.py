"""Telling data from other data, cheaply, and alike on all machines."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from typing import Any

import numpy as np


def sha256_of(*parts: Any) -> str:
    """The sha256 of arrays' contents, and of anything else's ``repr``; lists are gone through."""
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, np.ndarray):
            digest.update(f"{part.dtype.newbyteorder('<').str}{part.shape}".encode())
            array = np.ascontiguousarray(part.astype(part.dtype.newbyteorder("<"), copy=False))
            if array.size and array.itemsize:
                digest.update(array.reshape(-1).view(np.uint8).data)  # without a copy: it is large
        elif isinstance(part, list):
            digest.update("".join(["[", *map(sha256_of, part), "]"]).encode())
        else:
            digest.update(repr(part).encode())
        digest.update(b";")
    return digest.hexdigest()


def names_and_sizes(paths: Sequence[str]) -> list[tuple[str, int]]:
    """Of files: names below the folder that all are in, and bytes (-1 if that can't be told)."""
    common = os.path.dirname(os.path.commonprefix(list(paths)))  # noqa: PTH120, RUF071
    return [(path[len(common) :], _size_bytes(path)) for path in paths]


def _size_bytes(path: str) -> int:
    try:
        return os.stat(path).st_size  # noqa: PTH116 (there may be a million)
    except OSError:
        return -1
