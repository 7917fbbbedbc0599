"""What can be known, before the first step, of how TensorFlow will divide a plain dataset.

By ``file`` every worker reads files of its own: without waste, but there must be files for all, and
equally many records in each worker's, or batches become short without a word. By ``data`` every
worker reads and preprocesses everything, and drops what is the others'. TensorFlow's ``auto`` is
``file`` wherever it finds files, even if they are too few, else ``data``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from tfdp.choices import AutoShard
from tfdp.data import record_index
from tfdp.errors import BadInput
from tfdp.log import say
from tfdp.workers.collectives import Workers

_TFRECORDS = {"TFRecordDataset", "TFRecordDatasetV2"}
_READERS = {
    *_TFRECORDS,
    "TextLineDataset",
    "FixedLengthRecordDataset",
    "FixedLengthRecordDatasetV2",
}
_FILE_NAMES = {"TensorSliceDataset", "TensorDataset"}  # where the names of files come from
_IGNORE_STATE = 1  # of generators and the like, when a graph is written down
_LISTED = 12  # files that a message names; the rest is counted


@dataclasses.dataclass(frozen=True)
class Files:
    """Files that a dataset reads, in the order in which it takes them.

    Args:
        paths: their names.
        are_tfrecords: whether they are, so that their records can be counted.
        are_shuffled: whether the order is another in each epoch.
    """

    paths: tuple[str, ...]
    are_tfrecords: bool = True
    are_shuffled: bool = False


def settled(
    dataset: tf.data.Dataset, auto_shard: AutoShard | None, workers: Workers, *, training: bool
) -> AutoShard | None:
    """How workers shall divide a dataset; says so if each has to read all of it in training.

    Every worker calls it. Files with unequal numbers of records do no harm in evaluation, which
    waits for nobody's batch to be full, and so are not counted there.

    Args:
        dataset: plain, as the user made it.
        auto_shard: as asked for; None: as the dataset's options say.
        workers: the workers.
        training: whether it is for training, or for evaluation.

    Returns:
        The same, or ``"data"`` in place of an ``auto`` that ``file`` would not do justice to.

    Raises:
        BadInput: if files would be divided (``file``) and there are fewer than workers, or, in
            training, TFRecord files that leave the workers unequal numbers of records.
    """
    policy = auto_shard or dataset.options().experimental_distribute.auto_shard_policy.name.lower()
    if workers.count == 1 or policy not in ("auto", "file", "data"):
        return auto_shard

    def look() -> dict[str, Any]:
        groups = files_of(dataset) if policy != "data" else []
        reason = unbalanced(groups, workers.count) if training else too_few(groups, workers.count)
        if reason is not None and policy == "file":
            raise BadInput(f"{reason}. {_remedy(auto_shard, workers)}")
        return {"has_files": bool(groups), "reason": reason}

    found = workers.run_on_chief(look)
    reason = found["reason"]
    if training and workers.is_chief and (reason is not None or not found["has_files"]):
        say(
            f"{'each' if reason is None else f'{reason}. So each'} of the {workers.count} workers "
            "reads and preprocesses all of the dataset and drops what is the others': more workers "
            "don't make input faster (with a tfdp.Source they do)"
        )
    return auto_shard if reason is None else "data"


def files_of(dataset: tf.data.Dataset) -> list[Files]:
    """The files that a dataset reads, as far as its graph tells; nothing where it doesn't.

    Writing the graph down copies the arrays in it: it isn't done unless something may read files.
    """
    kinds = dataset.__debug_string__()
    if not any(
        kind in kinds for kind in ("TFRecord", "TextLine", "FixedLength", "erleave", "FlatMap")
    ):
        return []
    variant = tf.data.experimental.to_variant(dataset)
    try:
        serialized = tf.raw_ops.DatasetToGraphV2(
            input_dataset=variant, external_state_policy=_IGNORE_STATE
        )
    except tf.errors.OpError:  # too large for a message, or an op that TensorFlow can't write down
        return []
    graph = tf.compat.v1.GraphDef.FromString(serialized.numpy())
    return list(_files_in(graph))


def too_few(groups: Sequence[Files], workers: int) -> str | None:
    """Why some worker would have no file, naming those that there are, or None."""
    for files in groups:
        if len(files.paths) < workers:
            return (
                f"the dataset has {len(files.paths)} file(s) for {workers} workers, and divided by "
                f"files some would have none: {_listed(files.paths)}"
            )
    return None


def unbalanced(groups: Sequence[Files], workers: int) -> str | None:
    """Why files can't be divided evenly, naming them, or None if they can or nobody knows."""
    if reason := too_few(groups, workers):
        return reason
    for files in groups:
        counts = _counts(files)
        if counts is None:
            continue
        # TensorFlow deals files out in turns. In a new order each time, only equal ones are fair.
        by_worker = [int(counts[worker::workers].sum()) for worker in range(workers)]
        if len(set(by_worker)) > 1 or (files.are_shuffled and len(set(counts.tolist())) > 1):
            each = [f"{path} ({count})" for path, count in zip(files.paths, counts, strict=True)]
            return (
                f"divided by files, the {workers} workers would have {by_worker} records, and "
                f"batches would be short without a word. Records in each file: {_listed(each)}"
            )
    return None


def _remedy(auto_shard: AutoShard | None, workers: Workers) -> str:
    data = "AutoShardPolicy.DATA" if auto_shard is None else "--auto_shard=data"
    return (
        "Use tfdp.from_tfrecords (any number of files of any size), or write equally many records "
        f"into each of {workers.count} files, or a multiple of that, or use {data}, with which "
        "every worker reads everything"
    )


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(names[:_LISTED]) + more


def _counts(files: Files) -> np.ndarray | None:
    """Records of each file; None if they can't be counted. Nothing is written beside the data."""
    try:
        return record_index.scan(files.paths).counts if files.are_tfrecords else None
    except BadInput:  # compressed
        return None


def _files_in(graph: Any) -> Iterator[Files]:
    """Looks for datasets that call a function which reads files, and for the names they give it."""
    nodes = {node.name: node for node in graph.node}
    functions = {function.signature.name: function for function in graph.library.function}

    def ops(function: str) -> set[str]:
        return {op for node in functions[function].node_def for op in (node.op, *called_ops(node))}

    def called_ops(node: Any) -> set[str]:
        called = [value.func.name for value in node.attr.values() if value.func.name in functions]
        return {op for function in called for op in ops(function)}

    for node in graph.node:
        readers = called_ops(node) & _READERS
        if not readers:
            continue
        above, passed = nodes.get(node.input[0]), []
        while above is not None and above.op not in _FILE_NAMES:
            passed.append(above.op)
            above = nodes.get(above.input[0]) if above.input else None
        paths = () if above is None else _strings(nodes[name] for name in above.input)
        if paths and all(Path(path).exists() for path in paths):
            is_shuffled = any("Shuffle" in op for op in passed)
            yield Files(paths, readers <= _TFRECORDS, is_shuffled)


def _strings(constants: Iterator[Any]) -> tuple[str, ...]:
    for node in constants:
        if node.op == "Const" and node.attr["dtype"].type == tf.string.as_datatype_enum:
            proto = node.attr["value"].tensor.SerializeToString()
            values = tf.io.parse_tensor(proto, tf.string).numpy()
            return tuple(value.decode(errors="replace") for value in np.ravel(values))
    return ()
