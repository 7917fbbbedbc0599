"""Where every record of TFRecord files begins and ends: found once, kept in a small file.

A record is its length (uint64), a checksum of the length, the payload, a checksum of the payload.
So records are found by hopping from header to header; most of the data is not read.

The index file is one line of JSON (what was indexed, and how), then int64[records, 2], little
endian, from a multiple of 64 bytes on. It appears by one rename, and is believed as long as each
data file has the size and the modification time that it says.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import fcntl
import hashlib
import json
import os
import secrets
import shlex
import struct
import time
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import tensorflow as tf

from tfdp.errors import BadInput
from tfdp.files import sync_folder, write_durably
from tfdp.log import say

INDEX_PREFIX = ".tfdp-index-"  # of the names of index files
_FORMAT = 1
_HEADER_BYTES, _FOOTER_BYTES = 12, 4  # around each payload
_BLOCK_BYTES = 1 << 14  # read at once: many headers where records are small, little beside one
_THREADS = 16  # for waiting on disks; hopping itself is one core's work
_SAY_AFTER_S = 5.0

_DECOMPRESS = {
    "gzip": "gunzip --stdout {path} > {path}.plain",
    "zlib": 'python -c "import shutil, sys, zlib; '
    'sys.stdout.buffer.write(zlib.decompress(sys.stdin.buffer.read()))" < {path} > {path}.plain',
}


@dataclasses.dataclass(frozen=True)
class Fault:
    """A place in a file where a record should be and is not.

    Args:
        path: the file.
        offset: byte at which the record begins.
        what: what is wrong, and how much of the file it costs.
    """

    path: str
    offset: int
    what: str

    def __str__(self) -> str:
        return f"{self.path}, byte {self.offset}: {self.what}"


@dataclasses.dataclass(frozen=True)
class Index:
    """Records of some files, numbered through.

    Args:
        paths: the files.
        spans: int64[records, 2], the byte at which each record begins, and the one after its end.
        firsts: int64[files + 1], the number of each file's first record, and that of all records.
        faults: what was left out.
    """

    paths: tuple[str, ...]
    spans: np.ndarray
    firsts: np.ndarray
    faults: tuple[Fault, ...]

    @property
    def counts(self) -> np.ndarray:
        """Records of each file: int64[files]."""
        return np.diff(self.firsts)


def open_index(paths: Sequence[str], folder: Path | None, check_payloads: bool) -> Index:
    """Reads the index of files, or makes and keeps it; any number of workers at the same time.

    Args:
        paths: the files.
        folder: where the index is kept; None: beside the files, in the folder that all are in.
        check_payloads: whether payloads have to match their checksums, for which all is read.

    Raises:
        BadInput: if the folder can't be written, a file can't be read, or is compressed.
    """
    absolute = [os.path.abspath(path) for path in paths]  # noqa: PTH100 (links stay links)
    common = os.path.commonpath([os.path.dirname(path) for path in absolute])  # noqa: PTH120
    named = {"paths": [os.path.relpath(path, common) for path in absolute]}
    if folder is not None:  # it may hold indexes of files of the same names from elsewhere
        named["of"] = [common]
        with _index_dir_needed(folder):
            folder.mkdir(parents=True, exist_ok=True)
    else:
        folder = Path(common)
    name = hashlib.sha256(json.dumps([named, check_payloads]).encode()).hexdigest()[:16]
    index_path = folder / f"{INDEX_PREFIX}{name}"

    index = _load(index_path, paths)
    if index is not None:
        return index
    with _one_at_a_time(folder):
        index = _load(index_path, paths)  # another worker may have made it meanwhile
        if index is None:
            made = _make(index_path, paths, check_payloads)
            index = _load(index_path, paths) or made  # from the file, it takes no memory
    return index


def _load(index_path: Path, paths: Sequence[str]) -> Index | None:
    """The index if it is there, whole, and of the files as they are now."""
    try:
        with index_path.open("rb") as file:
            about = json.loads(file.readline())
            offset, size = file.tell(), os.fstat(file.fileno()).st_size
            firsts = np.cumsum([0, *about["counts"]], dtype=np.int64)
            if about["format"] != _FORMAT or size - offset != 16 * firsts[-1]:
                return None
            if about["stats"] != [_stat(path) for path in paths]:
                return None
            spans = np.zeros([0, 2], np.int64)
            if firsts[-1]:
                spans = np.memmap(file, "<i8", "r", offset, (int(firsts[-1]), 2))
    except (OSError, ValueError, KeyError, TypeError):
        return None
    faults = [Fault(paths[number], at, what) for number, at, what in about["faults"]]
    return Index(tuple(paths), spans, firsts, tuple(faults))


def _make(index_path: Path, paths: Sequence[str], check_payloads: bool) -> Index:
    hidden = index_path.with_name(f"{index_path.name}.{secrets.token_hex(8)}")
    with _index_dir_needed(index_path.parent):
        hidden.touch(exist_ok=False)  # before all the work, not after it
    try:
        try:
            stats = [_stat(path) for path in paths]
        except OSError as error:
            raise BadInput(f"{error.filename} can't be read: {error.strerror}") from None
        index = scan(paths, check_payloads)
        numbers = {path: number for number, path in enumerate(paths)}
        about = {
            "format": _FORMAT,
            "stats": stats,
            "counts": index.counts.tolist(),
            "faults": [[numbers[each.path], each.offset, each.what] for each in index.faults],
        }
        line = json.dumps(about).encode()
        padded = line.ljust(-(-(len(line) + 1) // 64) * 64 - 1) + b"\n"
        with _index_dir_needed(index_path.parent):
            write_durably(hidden, padded + index.spans.astype("<i8").tobytes())
            hidden.rename(index_path)
            sync_folder(index_path.parent)
        return index
    finally:
        hidden.unlink(missing_ok=True)


def _stat(path: str) -> list[int]:
    status = os.stat(path)  # noqa: PTH116
    return [status.st_size, status.st_mtime_ns]


@contextlib.contextmanager
def _index_dir_needed(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise BadInput(
            f"the index of the TFRecord files can't be kept in {folder}: {error.strerror}; "
            "give index_dir=, a folder that can be written (and is kept: it spares the next start "
            "the search for records)"
        ) from None


@contextlib.contextmanager
def _one_at_a_time(folder: Path) -> Iterator[None]:
    """Lets one worker search while others wait; where there are no locks, all search alike."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        yield  # what is wrong with the folder is said by who writes to it
        return
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def scan(paths: Sequence[str], check_payloads: bool = False) -> Index:
    """Finds the records of files, several at a time, and says how far it is if that takes long.

    Raises:
        BadInput: if a file can't be read, or is compressed.
    """
    began = said = time.monotonic()
    pool = concurrent.futures.ThreadPoolExecutor(_THREADS)
    try:
        searches = [pool.submit(_scan_file, path, check_payloads) for path in paths]
        waiting = set(searches)
        while waiting:
            done, waiting = concurrent.futures.wait(
                waiting, _SAY_AFTER_S, concurrent.futures.FIRST_EXCEPTION
            )
            for search in done:
                search.result()  # raises what it raised
            if waiting and time.monotonic() - said > _SAY_AFTER_S:
                said = time.monotonic()
                say(
                    f"searching {len(paths)} TFRecord files for their records: "
                    f"{len(paths) - len(waiting)} done after {said - began:.0f} s"
                )
        found = [search.result() for search in searches]
    finally:
        pool.shutdown(cancel_futures=True)
    return Index(
        tuple(paths),
        np.concatenate([spans for spans, _ in found]),
        np.cumsum([0, *(len(spans) for spans, _ in found)], dtype=np.int64),
        tuple(fault for _, faults in found for fault in faults),
    )


def _scan_file(path: str, check_payloads: bool) -> tuple[np.ndarray, list[Fault]]:
    """The spans of a file's records (int64[records, 2]), and where it is damaged."""
    try:
        lengths, checksums, end, size = _headers(path)
    except OSError as error:
        raise BadInput(f"{path} can't be read: {error.strerror}") from None
    wrong = np.flatnonzero(_masked_crc32c(lengths) != checksums)
    good = int(wrong[0]) if len(wrong) else len(lengths)
    ends = np.cumsum(lengths[:good].astype(np.int64) + (_HEADER_BYTES + _FOOTER_BYTES))
    spans = np.stack([np.concatenate([[0], ends])[:-1], ends], axis=1).astype(np.int64)
    last = int(ends[-1]) if good else 0
    faults = []
    if good and last > size:  # only the last one can be, for there hopping ends
        spans = spans[:-1]
        faults.append(Fault(path, int(ends[-2]) if good > 1 else 0, "the file ends in this record"))
    elif len(wrong):
        if good == 0:
            _refuse_compressed(path)
        faults.append(
            Fault(
                path,
                last,
                "the record's length does not match its checksum, so that nothing can be found "
                "from there on" + ("" if good else " (is this a TFRecord file?)"),
            )
        )
    elif end < size:
        faults.append(Fault(path, end, "the file ends in this record's header"))
    if check_payloads:
        bad = _bad_payloads(path, spans)
        what = "the record's payload does not match its checksum"
        faults += [Fault(path, int(spans[number, 0]), what) for number in bad]
        spans = np.delete(spans, bad, axis=0)
    return spans, faults


def _headers(path: str) -> tuple[np.ndarray, np.ndarray, int, int]:
    """Lengths (uint64) and their checksums (uint32) hop by hop, where hopping ended, file size."""
    lengths, checksums = array("Q"), array("I")
    unpack = struct.Struct("<QI").unpack_from
    with open(path, "rb", buffering=0) as file:  # noqa: PTH123
        descriptor = file.fileno()
        size = os.fstat(descriptor).st_size
        position = block_at = 0
        block = b""
        while position < size:
            place = position - block_at
            if place + _HEADER_BYTES > len(block):
                block, block_at, place = os.pread(descriptor, _BLOCK_BYTES, position), position, 0
                if len(block) < _HEADER_BYTES:
                    break
            length, checksum = unpack(block, place)
            lengths.append(length)
            checksums.append(checksum)
            position += length + _HEADER_BYTES + _FOOTER_BYTES
    return np.array(lengths, "<u8"), np.array(checksums, np.uint32), position, size


def _crc32c_table() -> np.ndarray:
    table = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table = np.where(table & 1, (table >> 1) ^ np.uint32(0x82F63B78), table >> 1)
    return table


_CRC32C = _crc32c_table()


def _masked_crc32c(numbers: np.ndarray) -> np.ndarray:
    """TFRecord's checksum of each of some uint64: CRC-32C, rotated by 15 bits, plus a constant."""
    crc = np.full(len(numbers), 0xFFFFFFFF, np.uint32)
    for byte in numbers.view(np.uint8).reshape(-1, 8).T:
        crc = _CRC32C[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    crc = ~crc
    return ((crc >> 15) | (crc << 17)) + np.uint32(0xA282EAD8)


def _bad_payloads(path: str, spans: np.ndarray) -> list[int]:
    """Numbers of the records whose payload TensorFlow refuses."""
    bad, number = [], 0
    while number < len(spans):
        number += count_readable(path, spans[number:, 0])
        if number < len(spans):
            bad.append(number)
            number += 1
    return bad


def count_readable(path: str, offsets: np.ndarray) -> int:
    """How many of the records that follow each other at ``offsets`` are good before a bad one."""
    if not len(offsets) or _all_readable(path, offsets):
        return len(offsets)
    good, step, is_near = 0, 1, False  # in growing steps, then in shrinking ones
    while step:
        if _all_readable(path, offsets[good : good + step]):
            good += step
        else:
            is_near = True
        step = step // 2 if is_near else step * 2
    return good


def _all_readable(path: str, offsets: np.ndarray) -> bool:
    def last(offset: tf.Tensor) -> tf.data.Dataset:
        records = records_at(tf.constant(path), offset, tf.constant(1 << 18, tf.int64))
        return records.skip(len(offsets) - 1).take(1)

    dataset = tf.data.Dataset.from_tensors(np.int64(offsets[0])).flat_map(last)
    return len(list(dataset)) == 1


def records_at(path: tf.Tensor, offset: tf.Tensor, buffer_bytes: tf.Tensor) -> tf.data.Dataset:
    """The payloads of a file's records from a byte on, up to one that can't be read.

    Call it in a function that another dataset maps: TensorFlow can't rewrite this one, because it
    forgets the offset.
    """
    variant = tf.raw_ops.TFRecordDatasetV2(
        filenames=[path], compression_type="", buffer_size=buffer_bytes, byte_offsets=[offset]
    )
    records = tf.data.experimental.from_variant(variant, tf.TensorSpec([], tf.string))
    return records.ignore_errors()


def _refuse_compressed(path: str) -> None:
    with open(path, "rb") as file:  # noqa: PTH123
        start = file.read(2)
    kind = None
    if start == b"\x1f\x8b":
        kind = "gzip"
    elif len(start) == 2 and start[0] == 0x78 and int.from_bytes(start, "big") % 31 == 0:
        kind = "zlib"
    if kind is not None:
        raise BadInput(
            f"{path} is compressed ({kind}), so that no record can be read without all before it: "
            f"convert it by\n    {_DECOMPRESS[kind].format(path=shlex.quote(path))}"
        )
