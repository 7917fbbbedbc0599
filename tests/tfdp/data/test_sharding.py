from __future__ import annotations

import gzip
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

READERS: dict[str, tuple[Make, bool, bool]] = {  # are TFRecords, are shuffled
    "a list": (lambda paths: tf.data.TFRecordDataset(paths), True, False),
    "in parallel": (
        lambda paths: tf.data.TFRecordDataset(paths, num_parallel_reads=2),
        True,
        False,
    ),
    "a dataset of names": (
        lambda paths: tf.data.TFRecordDataset(Dataset.from_tensor_slices(paths)),
        True,
        False,
    ),
    "processed": (
        lambda paths: tf.data.TFRecordDataset(paths).map(tf.strings.length).shuffle(9).repeat(),
        True,
        False,
    ),
    "list_files": (
        lambda paths: Dataset.list_files(paths, seed=1).interleave(tf.data.TFRecordDataset),
        True,
        True,
    ),
    "list_files in order": (
        lambda paths: Dataset.list_files(paths, shuffle=False).interleave(
            lambda path: tf.data.TFRecordDataset(path).map(tf.strings.length), num_parallel_calls=2
        ),
        True,
        False,
    ),
    "with classes": (
        lambda paths: Dataset.from_tensor_slices((range(len(paths)), paths)).flat_map(
            lambda label, path: tf.data.TFRecordDataset(path).map(lambda record: (record, label))
        ),
        True,
        False,
    ),
    "zipped": (
        lambda paths: Dataset.zip((Dataset.range(9), tf.data.TFRecordDataset(paths))),
        True,
        False,
    ),
    "text": (lambda paths: tf.data.TextLineDataset(paths), False, False),
    "fixed length": (lambda paths: tf.data.FixedLengthRecordDataset(paths, 2), False, False),
}


@pytest.mark.parametrize("name", READERS)
def test_the_files_of_a_dataset_are_found(name: str, tmp_path: Path) -> None:
    make, are_tfrecords, are_shuffled = READERS[name]
    paths = tuple(map(str, write(tmp_path, (3, 4, 5))))
    (files,) = sharding.find_files(make(list(paths)).batch(2).prefetch(1))
    assert files == sharding.FileGroup(paths, are_tfrecords, are_shuffled)


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


def test_arrays_are_not_written_down_in_vain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tf.raw_ops, "DatasetToGraphV2", None)
    dataset = Dataset.from_tensor_slices(np.zeros((4, 4))).map(lambda x: x).shuffle(4).batch(2)
    assert sharding.find_files(dataset) == []


BALANCE = [  # records of each file, workers, shuffled, the words
    ((6, 6), 2, False, None),
    ((6, 6), 2, True, None),
    ((1, 2, 3, 2), 2, False, None),  # 4 and 4, dealt out in turns
    ((1, 2, 3, 2), 2, True, r"would have \[4, 4\] records.*part-002.tfrecord \(3\)"),
    ((6,), 2, False, r"has 1 file\(s\) for 2 workers.*part-000.tfrecord"),
    ((6, 6, 6), 2, False, r"would have \[12, 6\] records.*part-001.tfrecord \(6\)"),
    ((6, 6, 6), 3, False, None),
    ((6, 6, 6), 4, False, r"has 3 file\(s\) for 4 workers.*part-002.tfrecord"),
    ((6, 7), 2, False, r"part-000.tfrecord \(6\), .*part-001.tfrecord \(7\)"),
]


@pytest.mark.parametrize(("counts", "workers", "is_shuffled", "said"), BALANCE)
def test_files_are_weighed(
    counts: tuple[int, ...], workers: int, is_shuffled: bool, said: str | None, tmp_path: Path
) -> None:
    paths = tuple(map(str, write(tmp_path, counts)))
    files = sharding.FileGroup(paths, are_shuffled=is_shuffled)
    reason = sharding.describe_imbalance([files], workers)
    if said is None:
        assert reason is None
    else:
        assert reason is not None
        assert_matches(said, reason)


def assert_matches(pattern: str, text: str) -> None:
    with pytest.raises(AssertionError, match=pattern):
        raise AssertionError(text)


def test_what_can_not_be_counted_is_not_judged(tmp_path: Path) -> None:
    first, second = write(tmp_path, (3, 4))
    text = sharding.FileGroup((str(first), str(second)), are_tfrecords=False)
    assert sharding.describe_imbalance([text], 2) is None
    assert sharding.describe_imbalance([text], 3) is not None
    for path in (first, second):
        path.write_bytes(gzip.compress(path.read_bytes()))
    assert sharding.describe_imbalance([sharding.FileGroup(text.paths)], 2) is None


def test_many_files_are_not_all_named(tmp_path: Path) -> None:
    files = sharding.FileGroup(tuple(map(str, write(tmp_path, (1,) * 20))))
    reason = sharding.describe_imbalance([files], 30)
    assert reason is not None
    assert reason.endswith("part-011.tfrecord and 8 more")


def workers(count: int) -> Any:
    return SimpleNamespace(count=count, is_chief=True, run_on_chief=lambda look: look())


def with_policy(dataset: tf.data.Dataset, policy: str) -> tf.data.Dataset:
    options = tf.data.Options()
    options.experimental_distribute.auto_shard_policy = getattr(
        tf.data.experimental.AutoShardPolicy, policy
    )
    return dataset.with_options(options)


SETTLED = [  # counts of files, what is asked for, what becomes of it in training, in evaluation
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


@pytest.mark.parametrize(("counts", "asked", "training", "evaluation"), SETTLED)
def test_how_workers_divide_files(
    counts: tuple[int, ...], asked: Any, training: str, evaluation: str, tmp_path: Path
) -> None:
    dataset = tf.data.TFRecordDataset(list(map(str, write(tmp_path, counts))))
    for is_training, outcome in ((True, training), (False, evaluation)):
        if outcome.startswith("--"):
            said = f"tfdp.from_tfrecords.*into each of 2 files.*use {outcome}"
            with pytest.raises(tfdp.BadInput, match=said):
                sharding.choose_auto_shard(dataset, asked, workers(2), training=is_training)
            own = with_policy(dataset, asked.upper())
            with pytest.raises(tfdp.BadInput, match=r"use AutoShardPolicy\.DATA"):
                sharding.choose_auto_shard(own, None, workers(2), training=is_training)
        else:
            assert (
                sharding.choose_auto_shard(dataset, asked, workers(2), training=is_training)
                == outcome
            )
            own = sharding.choose_auto_shard(
                with_policy(dataset, asked.upper()), None, workers(2), training=is_training
            )
            assert own == (None if outcome == asked else outcome)
        assert sharding.choose_auto_shard(dataset, asked, workers(1), training=is_training) == asked


@pytest.mark.parametrize(
    ("make", "policy", "is_said"),
    [
        (lambda paths: Dataset.range(4), "auto", True),
        (lambda paths: Dataset.range(4), "data", True),
        (lambda paths: Dataset.range(4), "off", False),
        (tf.data.TFRecordDataset, "auto", False),
        (tf.data.TFRecordDataset, "data", True),
    ],
)
def test_reading_all_on_every_worker_is_said_once(
    make: Make, policy: Any, is_said: bool, tmp_path: Path, capfd: Any
) -> None:
    dataset = make(list(map(str, write(tmp_path, (6, 6)))))
    for training in (True, False):
        sharding.choose_auto_shard(dataset, policy, workers(2), training=training)
    said = capfd.readouterr().err
    assert said.count("each of the 2 workers reads and preprocesses all") == is_said
