from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from tests.tfdp.states import checkpoint_of
from tfdp.checkpoints import reading, state_file
from tfdp.checkpoints.store import Checkpoint

ARRAYS = {
    "model/0000/a": np.arange(70, dtype=np.float32).reshape(7, 10),
    "model/0001/é": np.array(-7, np.int64),
    "metrics/0000/none": np.zeros((2, 0, 3), np.float16),
    "optimizer/0000/b": np.arange(33).astype(np.uint8),
    "callbacks/0000": np.arange(6, dtype=">f8").reshape(2, 3).T,  # neither order is the file's
}


def test_the_file_is_the_librarys(tmp_path: Path) -> None:
    path = tmp_path / "state.safetensors"
    sha256 = state_file.write(path, ARRAYS)
    data = path.read_bytes()
    assert sha256 == hashlib.sha256(data).hexdigest()
    found = safetensors.numpy.load(data)
    assert found.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(found[name], array)
    mapped = state_file.open_mapped(path)
    for place in mapped.places.values():
        assert place.array(mapped.part(place.start, place.stop)).flags.aligned


def test_a_dtype_that_the_format_lacks_is_named(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="rare has the dtype float8_e5m2"):
        state_file.write(tmp_path / "state", {"rare": np.zeros(2, ml_dtypes.float8_e5m2)})


@pytest.mark.parametrize(
    "data",
    [
        b"\x08\0\0\0\0\0\0\0[1, 2]  ",
        b"\x02\0\0\0\0\0\0\0{",
        b'\x20\0\0\0\0\0\0\0{"a": {"dtype": "F32"}}         ',
        b"\xff\xff\xff\xff\xff\xff\xff\xff{}",
        b"abc",
        b"",
    ],
)
def test_another_file_is_refused(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "state.safetensors"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"."):
        state_file.open_mapped(path)


class OneOfTwo:
    """A worker of two: what the chief sends is kept, and the other worker gets it."""

    count = 2

    def __init__(self, sent: list[bytes], is_chief: bool) -> None:
        self._sent = sent
        self._is_chief = is_chief

    def broadcast(self, data: np.ndarray | None) -> bytes:
        if data is None:
            return self._sent.pop(0)
        self._sent.append(data.tobytes())
        return self._sent[-1]


def both(checkpoint: Checkpoint) -> tuple[Mapping[str, np.ndarray], Mapping[str, np.ndarray], int]:
    """What the chief reads, what another worker does, and the number of pieces between them."""
    sent: list[bytes] = []
    chief: Any = OneOfTwo(sent, is_chief=True)
    on_chief = dict(reading.arrays(checkpoint, chief))
    count = len(sent)
    other: Any = OneOfTwo(sent, is_chief=False)
    received = dict(reading.arrays(Checkpoint(0, {}, checkpoint.places, None), other))
    assert not sent, "all that is sent is received"
    return on_chief, received, count


@pytest.mark.parametrize("piece_bytes", [1, 7, 64, 281, 1 << 20])
def test_other_workers_get_all_arrays_in_pieces(
    piece_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "PIECE_BYTES", piece_bytes)
    arrays = {name: np.ascontiguousarray(array, array.dtype.newbyteorder("<")) for name, array in
              ARRAYS.items()}  # fmt: skip
    on_chief, received, count = both(checkpoint_of(arrays))
    total = sum(array.nbytes for array in arrays.values())
    assert count == -(-total // piece_bytes)
    for name, array in arrays.items():
        np.testing.assert_array_equal(on_chief[name], array)
        np.testing.assert_array_equal(received[name], array)


def test_only_pieces_with_wanted_arrays_are_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "PIECE_BYTES", 100)
    arrays = {f"model/{i:04d}/x": np.full(250, i, np.uint8) for i in range(4)}
    checkpoint = checkpoint_of(arrays)
    places = {name: place for name, place in checkpoint.places.items() if "0002" in name}
    wanted = Checkpoint(0, {}, places, checkpoint.mapped)
    _, received, count = both(wanted)
    np.testing.assert_array_equal(received["model/0002/x"], arrays["model/0002/x"])
    assert (len(received), count) == (1, 3)  # bytes 500 to 750
