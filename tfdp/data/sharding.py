"""How workers shard a plain dataset, decided before the first step.

``file``: every worker reads its own files. No work is repeated, but every worker needs a file and
all need equally many records; otherwise TensorFlow silently makes short batches. ``data``: every
worker reads everything, which is what one process would read, and computes its rows of each global
batch. TensorFlow's ``auto`` chooses ``file`` for every dataset of files, even with too few files;
otherwise ``data``.
"""

from __future__ import annotations

import dataclasses
import functools
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
_FILE_NAMES = {"TensorSliceDataset", "TensorDataset"}  # datasets that hold the files' names
_IGNORE_STATE = 1  # policy for generators and the like when a graph is serialized
_MAX_LISTED = 12  # files that a message lists; the others are counted


@dataclasses.dataclass(frozen=True)
class FileGroup:
    """Files that one part of a dataset reads, in order.

    Args:
        paths: the files' names.
        are_tfrecords: whether they are TFRecord files, whose records can be counted.
        are_shuffled: whether their order changes in each epoch.
    """

    paths: tuple[str, ...]
    are_tfrecords: bool = True
    are_shuffled: bool = False


def choose_auto_shard(
    dataset: tf.data.Dataset, auto_shard: AutoShard | None, workers: Workers, *, training: bool
) -> AutoShard | None:
    """Returns how workers shard a dataset; a collective.

    Reports if every worker has to read the whole dataset in training. Unequal numbers of records
    are allowed in evaluation, so records are not counted there.

    Args:
        dataset: a plain dataset, as the user made it.
        auto_shard: the requested sharding; None uses the dataset's options.
        workers: the workers.
        training: whether it is for training, or for evaluation.

    Returns:
        ``auto_shard``, or ``"data"`` in place of an ``auto`` for which ``file`` would not work.

    Raises:
        BadInput: if ``file`` is requested and the workers outnumber the files, or, in training,
            workers would get unequal numbers of records from TFRecord files.
    """
    policy = auto_shard or dataset.options().experimental_distribute.auto_shard_policy.name.lower()
    if workers.count == 1:
        return "data"
    if policy not in ("auto", "file", "data"):
        return auto_shard

    def inspect() -> dict[str, Any]:
        groups = find_files(dataset) if policy != "data" else []
        describe = describe_imbalance if training else describe_shortage
        reason = describe(groups, workers.count)
        if reason is not None and policy == "file":
            raise BadInput(f"{reason}. {_remedy(auto_shard, workers)}")
        return {"has_files": bool(groups), "reason": reason}

    outcome = workers.run_on_chief(inspect)
    reason = outcome["reason"]
    if training and workers.is_chief and (reason is not None or not outcome["has_files"]):
        _say_once(
            f"{'each' if reason is None else f'{reason}. So each'} of the {workers.count} workers "
            "reads all of the dataset, and computes its rows of each batch: more workers don't "
            "make input faster (with a tfdp.Source they do)"
        )
    return auto_shard if reason is None and outcome["has_files"] else "data"


@functools.cache
def _say_once(message: str) -> None:
    """Prints a message, unless this process has printed the same before."""
    say(message)


def find_files(dataset: tf.data.Dataset) -> list[FileGroup]:
    """Returns the files that a dataset reads, as far as its graph shows them.

    The graph is serialized only if some op may read files, because that copies the arrays in it.
    """
    ops = dataset.__debug_string__()
    if not any(op in ops for op in ("TFRecord", "TextLine", "FixedLength", "erleave", "FlatMap")):
        return []
    variant = tf.data.experimental.to_variant(dataset)
    try:
        serialized = tf.raw_ops.DatasetToGraphV2(
            input_dataset=variant, external_state_policy=_IGNORE_STATE
        )
    except tf.errors.OpError:  # too large for a message, or an op that can't be serialized
        return []
    graph = tf.compat.v1.GraphDef.FromString(serialized.numpy())
    return list(_find_in_graph(graph))


def describe_shortage(groups: Sequence[FileGroup], workers: int) -> str | None:
    """Returns why some worker would have no file, or None."""
    for group in groups:
        if len(group.paths) < workers:
            return (
                f"the dataset has {len(group.paths)} file(s) for {workers} workers: sharded by "
                f"file, some workers would have none: {_list_names(group.paths)}"
            )
    return None


def describe_imbalance(groups: Sequence[FileGroup], workers: int) -> str | None:
    """Returns why files can't be sharded evenly; None if they can be, or if that is unknown."""
    if shortage := describe_shortage(groups, workers):
        return shortage
    for group in groups:
        counts = _count_records(group)
        if counts is None:
            continue
        # TensorFlow deals files out in turns. If they are shuffled, all have to be equal.
        by_worker = [int(counts[worker::workers].sum()) for worker in range(workers)]
        if len(set(by_worker)) > 1 or (group.are_shuffled and len(set(counts.tolist())) > 1):
            names = [f"{path} ({count})" for path, count in zip(group.paths, counts, strict=True)]
            return (
                f"sharded by file, the {workers} workers would have {by_worker} records, and some "
                f"batches would silently be short. Records in each file: {_list_names(names)}"
            )
    return None


def _remedy(auto_shard: AutoShard | None, workers: Workers) -> str:
    data = "AutoShardPolicy.DATA" if auto_shard is None else "--auto_shard=data"
    return (
        "Use tfdp.from_tfrecords (any number of files of any size), or write equally many records "
        f"into each of {workers.count} files, or a multiple of that, or use {data}, with which "
        "every worker reads everything"
    )


def _list_names(names: Sequence[str]) -> str:
    more = f" and {len(names) - _MAX_LISTED} more" if len(names) > _MAX_LISTED else ""
    return ", ".join(names[:_MAX_LISTED]) + more


def _count_records(group: FileGroup) -> np.ndarray | None:
    """Returns the records of each file; None if they can't be counted. Writes no index."""
    try:
        return record_index.scan(group.paths).counts if group.are_tfrecords else None
    except BadInput:  # compressed
        return None


def _find_in_graph(graph: Any) -> Iterator[FileGroup]:
    """Finds nodes that call functions which read files, and the file names that they pass on."""
    nodes = {node.name: node for node in graph.node}
    functions = {function.signature.name: function for function in graph.library.function}

    def ops_in(function: str) -> set[str]:
        return {op for node in functions[function].node_def for op in (node.op, *called_ops(node))}

    def called_ops(node: Any) -> set[str]:
        called = [value.func.name for value in node.attr.values() if value.func.name in functions]
        return {op for function in called for op in ops_in(function)}

    for node in graph.node:
        readers = called_ops(node) & _READERS
        if not readers:
            continue
        upstream, ops_between = nodes.get(node.input[0]), []
        while upstream is not None and upstream.op not in _FILE_NAMES:
            ops_between.append(upstream.op)
            upstream = nodes.get(upstream.input[0]) if upstream.input else None
        paths = () if upstream is None else _first_strings(nodes[name] for name in upstream.input)
        if paths and all(Path(path).exists() for path in paths):
            is_shuffled = any("Shuffle" in op for op in ops_between)
            yield FileGroup(paths, readers <= _TFRECORDS, is_shuffled)


def _first_strings(nodes: Iterator[Any]) -> tuple[str, ...]:
    """Returns the values of the first string constant among nodes."""
    for node in nodes:
        if node.op == "Const" and node.attr["dtype"].type == tf.string.as_datatype_enum:
            proto = node.attr["value"].tensor.SerializeToString()
            values = tf.io.parse_tensor(proto, tf.string).numpy()
            return tuple(value.decode(errors="replace") for value in np.ravel(values))
    return ()
