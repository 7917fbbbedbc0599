"""``tfdp.from_tfrecords``: a source that reads any record of any shard at its byte offset."""

from __future__ import annotations

import glob
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import tensorflow as tf

from tfdp.chief import is_chief
from tfdp.data.digest import names_and_sizes, sha256_of
from tfdp.data.index_file import INDEX_PREFIX, open_index
from tfdp.data.record_index import Index, count_readable, records_at
from tfdp.data.sources import Batch, Source, map_and_stack, pad_if_empty
from tfdp.errors import BadInput
from tfdp.log import say

OnCorrupt = Literal["raise", "skip"]

_MAX_BUFFER_BYTES = 1 << 22  # per read of a range of records


def from_tfrecords(
    pattern: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    parse: Callable[[tf.Tensor], Any],
    *,
    run_length: int = 16,
    on_corrupt: OnCorrupt = "raise",
    index_dir: str | os.PathLike[str] | None = None,
) -> Source:
    """Returns a source of plain TFRecord files of any sizes and number.

    The files are searched for their records once. The result is kept in a hidden index file beside
    the data.

    Args:
        pattern: a glob (``**`` included), or paths. Files are sorted by name, so an example has the
            same index on all workers.
        parse: returns ``(features[, label[, sample_weight]])`` of one record (string scalar) by
            TensorFlow ops, for instance ``tf.io.parse_single_example``. Called in parallel.
        run_length: number of consecutive records that stay together when shuffled. Choose it
            smaller than the batch: longer runs are read faster, shorter runs mix better, and 1
            shuffles single records.
        on_corrupt: ``"raise"`` refuses files with truncated records or damaged headers; a damaged
            payload ends the run when it is read. ``"skip"`` reads all data once, to index it, and
            leaves out damaged records.
        index_dir: folder of the index file, if the data's folder can't be written.

    Raises:
        BadInput: if no file matches, a file is compressed or damaged, the index can't be kept, or
            an argument is out of range.
    """
    if run_length < 1:
        raise BadInput(f"run_length is {run_length}: it has to be 1 or more")
    if on_corrupt not in get_args(OnCorrupt):
        raise BadInput(f"on_corrupt is {on_corrupt!r}: it has to be one of {get_args(OnCorrupt)}")
    index = open_index(
        _expand(pattern),
        None if index_dir is None else Path(index_dir),
        check_payloads=on_corrupt == "skip",
    )
    if index.corruptions and on_corrupt == "raise":
        raise BadInput(
            f"{_summarize_corruptions(index)}. Write these files again, or leave damaged records "
            'out by on_corrupt="skip"'
        )
    if index.corruptions and is_chief():
        say(f"left out: {_summarize_corruptions(index)}")
    return _TFRecordSource(index, parse, run_length)


def _expand(pattern: str | os.PathLike[str] | Sequence[str | os.PathLike[str]]) -> list[str]:
    """Returns the sorted paths of the files that a glob matches, or of those listed."""
    if isinstance(pattern, (str, os.PathLike)):
        arguments = [os.fspath(pattern)]
        matches = glob.glob(arguments[0], recursive=True)  # noqa: PTH207 (absolute ones too)
        paths = sorted(path for path in matches if not Path(path).is_dir())
    else:
        arguments = sorted(os.fspath(path) for path in pattern)
        paths = [path for path in arguments if not Path(path).name.startswith(INDEX_PREFIX)]
    for path in arguments:
        if ":/" in path:
            raise BadInput(
                f"{path} is remote, where no single record can be read: mount it as a folder"
            )
    if not paths:
        raise BadInput(f"no file matches {pattern!r}: TFRecord files are needed")
    return paths


def _summarize_corruptions(index: Index) -> str:
    first, *others = index.corruptions
    files = len({corruption.path for corruption in index.corruptions})
    more = f" (and at {len(others)} other places, in {files} files)" if others else ""
    return f"{first}{more}"


class _TFRecordSource(Source):
    def __init__(self, index: Index, parse: Callable[[tf.Tensor], Any], run_length: int) -> None:
        self._index = index
        self._parse = parse
        self._run_length = run_length

    def __len__(self) -> int:
        return len(self._index.spans)

    @property
    def run_length(self) -> int:
        return self._run_length

    def sha256(self) -> str:
        """Returns a digest of the files' names and sizes, and of the records' byte offsets."""
        return sha256_of(names_and_sizes(self._index.paths), np.asarray(self._index.spans))

    def read(self, indices: tf.Tensor) -> Batch:
        ranges = tf.numpy_function(
            self._merge_into_ranges, [pad_if_empty(indices)], [tf.string, *[tf.int64] * 4]
        )
        for column in ranges:
            column.set_shape([None])
        records = tf.data.Dataset.from_tensor_slices(tuple(ranges)).flat_map(self._read_range)
        batch = map_and_stack(records, self._parse, tf.size(indices))
        return batch if isinstance(batch, tuple) else (batch,)

    def _merge_into_ranges(self, indices: np.ndarray) -> tuple[np.ndarray, ...]:
        """Merges records that follow each other in a file into ranges, each read in one pass.

        Returns:
            For each range: file, first byte, length in bytes, index of the first example, number
            of examples.
        """
        spans = np.asarray(self._index.spans[indices])
        files = self._index.file_of(indices)
        is_continued = (np.diff(files) == 0) & (spans[1:, 0] == spans[:-1, 1])
        begins = np.flatnonzero(np.concatenate([[True], ~is_continued]))
        counts = np.diff(begins, append=len(indices))
        starts, ends = spans[begins, 0], spans[begins + counts - 1, 1]
        paths = np.array(self._index.paths, dtype=object)[files[begins]]
        return paths, starts, ends - starts, indices[begins], counts

    def _read_range(
        self, path: tf.Tensor, start: tf.Tensor, size: tf.Tensor, first: tf.Tensor, count: tf.Tensor
    ) -> tf.data.Dataset:
        records = records_at(path, start, tf.minimum(size, _MAX_BUFFER_BYTES))

        def fail(first: tf.Tensor, count: tf.Tensor) -> tf.Tensor:
            message = tf.numpy_function(self._report_unreadable, [first, count], tf.string)
            with tf.control_dependencies([tf.debugging.Assert(tf.equal(message, ""), [message])]):
                return tf.ensure_shape(tf.identity(message), [])

        # TensorFlow's own error does not name the file. This part is read only if a record is
        # missing, because records_at stops silently.
        failure = tf.data.Dataset.from_tensors((first, count)).map(fail)
        return records.concatenate(failure).take(count)

    def _report_unreadable(self, first: np.int64, count: np.int64) -> str:
        """Reports, and returns a message about, the first unreadable one of a file's examples."""
        path = self._index.paths[int(self._index.file_of(int(first)))]
        offsets = np.asarray(self._index.spans[first : first + count, 0])
        offset = offsets[min(count_readable(path, offsets), len(offsets) - 1)]
        message = (
            f"{path}, byte {offset}: the record can't be read, or does not match its checksum. "
            'Write this file again, or leave damaged records out by on_corrupt="skip"'
        )
        say(message)  # TensorFlow wraps the error in many words of its own
        return message
