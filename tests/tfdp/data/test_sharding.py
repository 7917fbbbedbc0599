from __future__ import annotations

import functools
import gzip
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

import tfdp
from tests.tfdp.records import write
from tfdp.data import sharding

Dataset = tf.data.Dataset
Make = Callable[[list[str]], tf.data.Dataset]

READERS: dict[str, Make] = {  # of TFRecords in order, but for those named below
    "a list": tf.data.TFRecordDataset,
    "in parallel": lambda paths: tf.data.TFRecordDataset(paths, num_parallel_reads=2),
    "a dataset of names": lambda paths: tf.data.TFRecordDataset(Dataset.from_tensor_slices(paths)),
    "processed": lambda paths: (
        tf.data.TFRecordDataset(paths).map(tf.strings.length).shuffle(9).repeat()
    ),
    "list_files": lambda paths: Dataset.list_files(paths, seed=1).interleave(
        tf.data.TFRecordDataset
    ),
    "list_files in order": lambda paths: Dataset.list_files(paths, shuffle=False).interleave(
        lambda path: tf.data.TFRecordDataset(path).map(tf.strings.length), num_parallel_calls=2
    ),
    "with classes": lambda paths: Dataset.from_tensor_slices((range(len(paths)), paths)).flat_map(
        lambda label, path: tf.data.TFRecordDataset(path).map(lambda record: (record, label))
    ),
    "zipped": lambda paths: Dataset.zip((Dataset.range(9), tf.data.TFRecordDataset(paths))),
    "text": tf.data.TextLineDataset,
    "fixed length": lambda paths: tf.data.FixedLengthRecordDataset(paths, 2),
}


@pytest.mark.parametrize("name", READERS)
def test_the_files_of_a_dataset_are_found(name: str, tmp_path: Path) -> None:
    paths = tuple(map(str, write(tmp_path, (3, 4, 5))))
    (group,) = sharding.find_files(READERS[name](list(paths)).batch(2).prefetch(1))
    are_tfrecords = name not in ("text", "fixed length")
    assert group == sharding.FileGroup(paths, are_tfrecords, are_shuffled=name == "list_files")


@pytest.mark.parametrize(
    "dataset",
    [
        Dataset.range(5).batch(2),
        Dataset.from_tensor_slices(["a", "b"]).flat_map(Dataset.from_tensors),
        Dataset.from_generator(lambda: range(3), output_signature=tf.TensorSpec([], tf.int64)),
        Dataset.from_tensor_slices(["not", "there"]).flat_map(tf.data.TFRecordDataset),
        Dataset.range(3).interleave(
            lambda i: Dataset.from_tensors(tf.py_function(lambda i: i, [i], tf.int64))
        ),
    ],
)
def test_a_dataset_without_files_has_none(dataset: tf.data.Dataset) -> None:
    assert sharding.find_files(dataset) == []


def test_a_graph_without_readers_is_not_serialized(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tf.raw_ops, "DatasetToGraphV2", None)
    dataset = Dataset.from_tensor_slices(np.zeros((4, 4))).map(lambda x: x).shuffle(4).batch(2)
    assert sharding.find_files(dataset) == []


BALANCE = [  # records of each file, workers, whether shuffled, words of the reason
    ((6, 6), 2, False, None),
    ((6, 6), 2, True, None),
    ((1, 2, 3, 2), 2, False, None),  # 4 and 4, dealt out in turns
    ((1, 2, 3, 2), 2, True, r"would have \[4, 4\] records.*part-002.tfrecord \(3\)"),
    ((6,), 2, False, r"has 1 file\(s\) for 2 workers.*part-000.tfrecord"),
    ((6, 6, 6), 2, False, r"would have \[12, 6\] records.*part-001.tfrecord \(6\)"),
    ((6, 6, 6), 3, False, None),
    ((6, 6, 6), 4, False, r"has 3 file\(s\) for 4 workers.*part-002.tfrecord"),
    ((6, 7), 2, False, r"part-000.tfrecord \(6\), .*part-001.tfrecord \(7\)"),
    ((1,) * 20, 30, False, r"part-011.tfrecord and 8 more$"),
]


@pytest.mark.parametrize(("counts", "workers", "is_shuffled", "reason"), BALANCE)
def test_an_imbalance_of_files_is_described(
    counts: tuple[int, ...], workers: int, is_shuffled: bool, reason: str | None, tmp_path: Path
) -> None:
    paths = tuple(map(str, write(tmp_path, counts)))
    group = sharding.FileGroup(paths, are_shuffled=is_shuffled)
    described = sharding.describe_imbalance([group], workers)
    if reason is None:
        assert described is None
    else:
        assert described is not None
        assert re.search(reason, described)


def test_files_whose_records_can_not_be_counted_count_as_balanced(tmp_path: Path) -> None:
    first, second = write(tmp_path, (3, 4))
    text = sharding.FileGroup((str(first), str(second)), are_tfrecords=False)
    assert sharding.describe_imbalance([text], 2) is None
    assert sharding.describe_imbalance([text], 3) is not None
    for path in (first, second):
        path.write_bytes(gzip.compress(path.read_bytes()))
    assert sharding.describe_imbalance([sharding.FileGroup(text.paths)], 2) is None


def workers(count: int) -> Any:
    return SimpleNamespace(count=count, is_chief=True, run_on_chief=lambda inspect: inspect())


def with_policy(dataset: tf.data.Dataset, policy: str) -> tf.data.Dataset:
    options = tf.data.Options()
    options.experimental_distribute.auto_shard_policy = getattr(
        tf.data.experimental.AutoShardPolicy, policy
    )
    return dataset.with_options(options)


CHOICES = [  # records of each file, requested sharding, choice in training, in evaluation
    ((6, 6), "auto", "auto", "auto"),
    ((6, 6), "file", "file", "file"),
    ((6, 6), "data", "data", "data"),
    ((6, 6), "off", "off", "off"),
    ((6, 7), "auto", "data", "auto"),
    ((6, 7), "file", "--auto_shard=data", "file"),
    ((6, 7), "off", "off", "off"),
    ((6,), "auto", "data", "data"),
    ((6,), "file", "--auto_shard=data", "--auto_shard=data"),
]


@pytest.mark.parametrize(("counts", "requested", "training", "evaluation"), CHOICES)
def test_how_workers_shard_files(
    counts: tuple[int, ...], requested: Any, training: str, evaluation: str, tmp_path: Path
) -> None:
    dataset = tf.data.TFRecordDataset(list(map(str, write(tmp_path, counts))))
    with_option = with_policy(dataset, requested.upper())
    for is_training, choice in ((True, training), (False, evaluation)):
        choose = functools.partial(sharding.choose_auto_shard, training=is_training)
        if choice.startswith("--"):
            message = f"tfdp.from_tfrecords.*into each of 2 files.*use {choice}"
            with pytest.raises(tfdp.BadInput, match=message):
                choose(dataset, requested, workers(2))
            with pytest.raises(tfdp.BadInput, match=r"use AutoShardPolicy\.DATA"):
                choose(with_option, None, workers(2))
        else:
            assert choose(dataset, requested, workers(2)) == choice
            unchanged = None if choice == requested != "data" else choice
            assert choose(with_option, None, workers(2)) == unchanged
        assert choose(dataset, requested, workers(1)) == "data"


@pytest.mark.parametrize(
    ("make", "policy", "is_reported"),
    [
        (lambda paths: Dataset.range(4), "auto", True),
        (lambda paths: Dataset.range(4), "data", True),
        (lambda paths: Dataset.range(4), "off", False),
        (tf.data.TFRecordDataset, "auto", False),
        (tf.data.TFRecordDataset, "data", True),
    ],
)
def test_it_is_reported_once_that_every_worker_reads_everything(
    make: Make, policy: Any, is_reported: bool, tmp_path: Path, capfd: Any
) -> None:
    dataset = make(list(map(str, write(tmp_path, (6, 6)))))
    sharding._say_once.cache_clear()
    for training in (True, False, True):
        sharding.choose_auto_shard(dataset, policy, workers(2), training=training)
    output = capfd.readouterr().err
    assert output.count("each of the 2 workers reads all of the dataset") == is_reported
