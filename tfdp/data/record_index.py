"""Finds where every record of TFRecord files begins and ends.

A record is its length (uint64), a checksum of the length, the payload, and a checksum of the
payload. So the search reads one header after the other and skips the payloads: it reads only a
small part of files with large records.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import os
import shlex
import struct
import time
from array import array
from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from tfdp.errors import BadInput
from tfdp.log import say

_HEADER_BYTES, _FOOTER_BYTES = 12, 4  # around each payload
_BLOCK_BYTES = 1 << 14  # per read: many headers of small records, little beside a large record
_THREADS = 16  # to wait for disks; one core is enough to follow the headers
_REPORT_EVERY_S = 5.0

_DECOMPRESS = {
    "gzip": "gunzip --stdout {path} > {path}.plain",
    "zlib": 'python -c "import shutil, sys, zlib; '
    'sys.stdout.buffer.write(zlib.decompress(sys.stdin.buffer.read()))" < {path} > {path}.plain',
}


@dataclasses.dataclass(frozen=True)
class Corruption:
    """A truncated or damaged record.

    Args:
        path: the file.
        offset: byte at which the record begins.
        reason: why the record can't be read, and which part of the file is lost with it.
    """

    path: str
    offset: int
    reason: str

    def __str__(self) -> str:
        return f"{self.path}, byte {self.offset}: {self.reason}"


@dataclasses.dataclass(frozen=True)
class Index:
    """The records of some files, numbered consecutively over all files.

    Args:
        paths: the files.
        spans: int64[records, 2], the byte at which each record begins, and the byte after its end.
        firsts: int64[files + 1], the number of each file's first record, and of all records.
        corruptions: records that are left out.
    """

    paths: tuple[str, ...]
    spans: np.ndarray
    firsts: np.ndarray
    corruptions: tuple[Corruption, ...]

    @property
    def counts(self) -> np.ndarray:
        """Number of records in each file: int64[files]."""
        return np.diff(self.firsts)

    def file_of(self, record: int | np.ndarray) -> np.ndarray:
        """Returns the index into ``paths`` of the file that contains a record."""
        return np.searchsorted(self.firsts, record, side="right") - 1


def scan(paths: Sequence[str], check_payloads: bool = False) -> Index:
    """Finds the records of files, several files at a time, and reports progress if that is slow.

    Args:
        paths: the files.
        check_payloads: whether to leave out records whose payload does not match its checksum,
            for which all data is read.

    Raises:
        BadInput: if a file can't be read, or is compressed.
    """
    started_s = reported_s = time.monotonic()
    pool = concurrent.futures.ThreadPoolExecutor(_THREADS)
    try:
        searches = [pool.submit(_scan_file, path, check_payloads) for path in paths]
        pending = set(searches)
        while pending:
            done, pending = concurrent.futures.wait(
                pending, _REPORT_EVERY_S, concurrent.futures.FIRST_EXCEPTION
            )
            for search in done:
                search.result()  # raises the search's exception
            if pending and time.monotonic() - reported_s > _REPORT_EVERY_S:
                reported_s = time.monotonic()
                say(
                    f"searching {len(paths)} TFRecord files for their records: "
                    f"{len(paths) - len(pending)} done after {reported_s - started_s:.0f} s"
                )
        results = [search.result() for search in searches]
    finally:
        pool.shutdown(cancel_futures=True)
    return Index(
        tuple(paths),
        np.concatenate([spans for spans, _ in results]),
        np.cumsum([0, *(len(spans) for spans, _ in results)], dtype=np.int64),
        tuple(corruption for _, corruptions in results for corruption in corruptions),
    )


def _scan_file(path: str, check_payloads: bool) -> tuple[np.ndarray, list[Corruption]]:
    """Returns the spans of a file's readable records (int64[records, 2]), and its corruptions."""
    try:
        lengths, checksums, end, size = _read_headers(path)
    except OSError as error:
        raise BadInput(f"{path} can't be read: {error.strerror}") from None
    wrong = np.flatnonzero(_masked_crc32c(lengths) != checksums)
    good = int(wrong[0]) if len(wrong) else len(lengths)
    ends = np.cumsum(lengths[:good].astype(np.int64) + (_HEADER_BYTES + _FOOTER_BYTES))
    spans = np.stack([np.concatenate([[0], ends])[:-1], ends], axis=1).astype(np.int64)
    last_end = int(ends[-1]) if good else 0
    corruptions = []
    if good and last_end > size:  # only the last record can be truncated: the search ends there
        begin = int(spans[-1, 0])
        spans = spans[:-1]
        corruptions.append(Corruption(path, begin, "the file ends in this record"))
    elif len(wrong):
        if good == 0:
            _refuse_compressed(path)
        reason = (
            "the record's length does not match its checksum, so the rest of the file can't be "
            "read" + ("" if good else " (is this a TFRecord file?)")
        )
        corruptions.append(Corruption(path, last_end, reason))
    elif end < size:
        corruptions.append(Corruption(path, end, "the file ends in this record's header"))
    if check_payloads:
        bad = _bad_payloads(path, spans)
        reason = "the record's payload does not match its checksum"
        corruptions += [Corruption(path, int(spans[number, 0]), reason) for number in bad]
        spans = np.delete(spans, bad, axis=0)
    return spans, corruptions


def _read_headers(path: str) -> tuple[np.ndarray, np.ndarray, int, int]:
    """Reads one header after the other, up to a header that is truncated or the end of the file.

    Returns:
        Lengths (uint64) and their checksums (uint32), the byte at which reading ended, file size.
    """
    lengths, checksums = array("Q"), array("I")
    unpack = struct.Struct("<QI").unpack_from
    with open(path, "rb", buffering=0) as file:  # noqa: PTH123
        descriptor = file.fileno()
        size = os.fstat(descriptor).st_size
        position = block_start = 0
        block = b""
        while position < size:
            place = position - block_start
            if place + _HEADER_BYTES > len(block):
                block = os.pread(descriptor, _BLOCK_BYTES, position)
                block_start, place = position, 0
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
    """Returns TFRecord's checksum of each uint64: CRC-32C, rotated by 15 bits, plus a constant."""
    crc = np.full(len(numbers), 0xFFFFFFFF, np.uint32)
    for byte in numbers.view(np.uint8).reshape(-1, 8).T:
        crc = _CRC32C[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    crc = ~crc
    return ((crc >> 15) | (crc << 17)) + np.uint32(0xA282EAD8)


def _bad_payloads(path: str, spans: np.ndarray) -> list[int]:
    """Returns the numbers of the records whose payload TensorFlow refuses."""
    bad, number = [], 0
    while number < len(spans):
        number += count_readable(path, spans[number:, 0])
        if number < len(spans):
            bad.append(number)
            number += 1
    return bad


def count_readable(path: str, offsets: np.ndarray) -> int:
    """Returns how many of the consecutive records at ``offsets`` come before a bad one."""
    if not len(offsets) or _are_all_readable(path, offsets):
        return len(offsets)
    good, step, is_shrinking = 0, 1, False  # steps grow up to the first failure, then shrink
    while step:
        if _are_all_readable(path, offsets[good : good + step]):
            good += step
        else:
            is_shrinking = True
        step = step // 2 if is_shrinking else step * 2
    return good


def _are_all_readable(path: str, offsets: np.ndarray) -> bool:
    def read_last(offset: tf.Tensor) -> tf.data.Dataset:
        records = records_at(tf.constant(path), offset, tf.constant(1 << 18, tf.int64))
        return records.skip(len(offsets) - 1).take(1)

    dataset = tf.data.Dataset.from_tensors(np.int64(offsets[0])).flat_map(read_last)
    return len(list(dataset)) == 1


def records_at(path: tf.Tensor, offset: tf.Tensor, buffer_bytes: tf.Tensor) -> tf.data.Dataset:
    """Returns the payloads of a file's records from a byte on, up to a record that can't be read.

    Call it in a function that another dataset maps. There, TensorFlow does not rewrite this
    dataset; a rewrite would lose the offset.
    """
    variant = tf.raw_ops.TFRecordDatasetV2(
        filenames=[path], compression_type="", buffer_size=buffer_bytes, byte_offsets=[offset]
    )
    records = tf.data.experimental.from_variant(variant, tf.TensorSpec([], tf.string))
    return records.ignore_errors()


def _refuse_compressed(path: str) -> None:
    """Raises BadInput, with the command that decompresses the file, if it is compressed."""
    with open(path, "rb") as file:  # noqa: PTH123
        start = file.read(2)
    kind = None
    if start == b"\x1f\x8b":
        kind = "gzip"
    elif len(start) == 2 and start[0] == 0x78 and int.from_bytes(start, "big") % 31 == 0:
        kind = "zlib"
    if kind is not None:
        raise BadInput(
            f"{path} is compressed ({kind}), so no record can be read without all records before "
            f"it: convert it by\n    {_DECOMPRESS[kind].format(path=shlex.quote(path))}"
        )
