"""``tfdp.from_tfrecords``: any record of any shard, read where it is."""

from __future__ import annotations

import glob
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import tensorflow as tf

from tfdp.data.digest import names_and_sizes, sha256_of
from tfdp.data.record_index import INDEX_PREFIX, Index, count_readable, open_index, records_at
from tfdp.data.sources import Batch, Source, at_least_one, each
from tfdp.errors import BadInput
from tfdp.log import say
from tfdp.workers.connecting import is_chief

OnCorrupt = Literal["raise", "skip"]

_MOST_BUFFER_BYTES = 1 << 22  # a range of records is read in pieces of this size at the most


def from_tfrecords(
    pattern: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    parse: Callable[[tf.Tensor], Any],
    *,
    run_length: int = 16,
    on_corrupt: OnCorrupt = "raise",
    index_dir: str | os.PathLike[str] | None = None,
) -> Source:
    """Makes a source of plain TFRecord files of any sizes and number.

    Where each record begins is found once, by hopping from header to header, and kept in a hidden
    file beside the data.

    Args:
        pattern: a glob (``**`` included), or paths. Files are taken in the order of their names, so
            that examples have the same numbers on all workers.
        parse: makes ``(features[, label[, sample_weight]])`` of one record (string scalar) by
            TensorFlow ops, ``tf.io.parse_single_example`` for instance. Called in parallel.
        run_length: consecutive records that stay together when shuffled. A batch holds several
            runs; longer ones are faster to read, shorter ones mix better, and 1 shuffles records.
        on_corrupt: ``"raise"`` refuses files with truncated records or damaged headers; a damaged
            payload ends the run when it is read. ``"skip"`` reads all data once, when it is
            indexed, and leaves out what is damaged.
        index_dir: where to keep the index, if the data's folder can't be written.

    Raises:
        BadInput: if there are no files, a file is compressed or damaged, the index can't be kept,
            or an argument is out of range.
    """
    if run_length < 1:
        raise BadInput(f"run_length is {run_length}: it has to be 1 or more")
    if on_corrupt not in get_args(OnCorrupt):
        raise BadInput(f"on_corrupt is {on_corrupt!r}: it has to be one of {get_args(OnCorrupt)}")
    index = open_index(
        _files(pattern),
        None if index_dir is None else Path(index_dir),
        check_payloads=on_corrupt == "skip",
    )
    if index.faults and on_corrupt == "raise":
        raise BadInput(
            f"{_summary(index)}. Write these files again, or leave what is damaged out by "
            'on_corrupt="skip"'
        )
    if index.faults and is_chief():
        say(f"left out: {_summary(index)}")
    return _Records(index, parse, run_length)


def _files(pattern: str | os.PathLike[str] | Sequence[str | os.PathLike[str]]) -> list[str]:
    if isinstance(pattern, (str, os.PathLike)):
        given = [os.fspath(pattern)]
        found = glob.glob(given[0], recursive=True)  # noqa: PTH207 (absolute ones too)
        paths = sorted(path for path in found if not Path(path).is_dir())
    else:
        given = sorted(os.fspath(path) for path in pattern)
        paths = [path for path in given if not Path(path).name.startswith(INDEX_PREFIX)]
    for path in given:
        if ":/" in path:
            raise BadInput(f"{path} is remote, where records can't be found: mount it as a folder")
    if not paths:
        raise BadInput(f"no file matches {pattern!r}: TFRecord files are needed")
    return paths


def _summary(index: Index) -> str:
    first, *others = index.faults
    files = len({fault.path for fault in index.faults})
    more = f" (and at {len(others)} other places, in {files} files)" if others else ""
    return f"{first}{more}"


class _Records(Source):
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
        """Of the files' names and sizes, and of where each record begins and ends."""
        return sha256_of(names_and_sizes(self._index.paths), np.asarray(self._index.spans))

    def read(self, indices: tf.Tensor) -> Batch:
        ranges = tf.numpy_function(
            self._ranges, [at_least_one(indices)], [tf.string, *[tf.int64] * 4]
        )
        for column in ranges:
            column.set_shape([None])
        records = tf.data.Dataset.from_tensor_slices(tuple(ranges)).flat_map(self._range)
        batch = each(records, self._parse, tf.size(indices))
        return batch if isinstance(batch, tuple) else (batch,)

    def _ranges(self, indices: np.ndarray) -> tuple[np.ndarray, ...]:
        """Examples that lie behind each other in a file, as ranges to be read at one go.

        Returns:
            Of each range: its file, first byte, length in bytes, first example, and their number.
        """
        spans = np.asarray(self._index.spans[indices])
        files = np.searchsorted(self._index.firsts, indices, side="right") - 1
        goes_on = (np.diff(files) == 0) & (spans[1:, 0] == spans[:-1, 1])
        begins = np.flatnonzero(np.concatenate([[True], ~goes_on]))
        counts = np.diff(begins, append=len(indices))
        starts, ends = spans[begins, 0], spans[begins + counts - 1, 1]
        paths = np.array(self._index.paths, dtype=object)[files[begins]]
        return paths, starts, ends - starts, indices[begins], counts

    def _range(
        self, path: tf.Tensor, start: tf.Tensor, size: tf.Tensor, first: tf.Tensor, count: tf.Tensor
    ) -> tf.data.Dataset:
        records = records_at(path, start, tf.minimum(size, _MOST_BUFFER_BYTES))

        def fail(first: tf.Tensor, count: tf.Tensor) -> tf.Tensor:
            message = tf.numpy_function(self._fault, [first, count], tf.string)
            with tf.control_dependencies([tf.debugging.Assert(tf.equal(message, ""), [message])]):
                return tf.ensure_shape(tf.identity(message), [])

        # TensorFlow's own error does not say which file it is; this is asked only if one is short.
        missing = tf.data.Dataset.from_tensors((first, count)).map(fail)
        return records.concatenate(missing).take(count)

    def _fault(self, first: np.int64, count: np.int64) -> str:
        """Names the first of some examples of a file that can't be read, to people right away."""
        path = self._index.paths[int(np.searchsorted(self._index.firsts, first, side="right")) - 1]
        offsets = np.asarray(self._index.spans[first : first + count, 0])
        offset = offsets[min(count_readable(path, offsets), len(offsets) - 1)]
        message = (
            f"{path}, byte {offset}: the record can't be read, or does not match its checksum. "
            'Write this file again, or leave what is damaged out by on_corrupt="skip"'
        )
        say(message)  # TensorFlow wraps the error in many words of its own
        return message
