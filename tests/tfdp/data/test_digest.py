from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

import tfdp
from tests.tfdp.data.test_sources import Squares, load
from tests.tfdp.records import parse, write
from tfdp.data.sources import data_sha256

ROWS = np.arange(12.0, dtype=np.float32).reshape(6, 2)
CLASSES = np.arange(6)


def all_differ(*data: Any) -> bool:
    digests = [data_sha256(item) for item in data]
    assert all(digest is not None and len(digest) == 64 for digest in digests)
    return len(set(digests)) == len(digests)


def test_the_digest_of_arrays_covers_structure_and_content() -> None:
    changed = ROWS.copy()
    changed[5, 1] += 1
    assert all_differ(
        tfdp.from_arrays(ROWS),
        tfdp.from_arrays(changed),
        tfdp.from_arrays(ROWS.T.copy()),
        tfdp.from_arrays(ROWS, CLASSES),
        tfdp.from_arrays({"a": ROWS}, CLASSES),
        tfdp.from_arrays({"b": ROWS}, CLASSES),
        tfdp.from_arrays(ROWS, CLASSES, CLASSES),
        tfdp.from_arrays(["a", "b"]),
        tfdp.from_arrays(["a", "c"]),
        tfdp.from_arrays(np.zeros((0, 2), np.float32)),
    )
    same = [
        tfdp.from_arrays(ROWS, CLASSES),
        tfdp.from_arrays(ROWS.astype(">f8"), CLASSES.astype(">i8")),  # cast to the same
        tfdp.from_arrays(np.asfortranarray(ROWS), CLASSES.tolist()),
    ]
    assert len({data_sha256(source) for source in same}) == 1


def test_the_digest_of_files_covers_names_sizes_and_labels(tmp_path: Path) -> None:
    paths = [tmp_path / "here" / name for name in ("a", "b")]
    paths[0].parent.mkdir()
    for path in paths:
        path.write_bytes(b"12")

    def source(folder: str = "here", labels: Any = (0, 1)) -> tfdp.Source:
        return tfdp.from_files(sorted((tmp_path / folder).iterdir()), np.array(labels), load)

    before = source().sha256()
    shutil.copytree(tmp_path / "here", tmp_path / "there")
    assert source("there").sha256() == before
    assert source(labels=(1, 1)).sha256() != before
    (tmp_path / "there" / "b").write_bytes(b"123")
    assert source("there").sha256() != before


def test_the_digest_of_records_covers_their_offsets(tmp_path: Path) -> None:
    def source(name: str, *counts: int) -> tfdp.Source:
        (tmp_path / name).mkdir()
        write(tmp_path / name, counts)
        return tfdp.from_tfrecords(tmp_path / name / "*", parse)

    assert source("a", 3, 2).sha256() == source("b", 3, 2).sha256()
    assert all_differ(source("c", 3, 2), source("d", 2, 3), source("e", 5))


def test_the_digest_of_other_data_covers_specs_and_length() -> None:
    numbers = tf.data.Dataset.range
    assert all_differ(
        Squares(), tfdp.from_arrays(ROWS), numbers(3), numbers(4), numbers(3).batch(1)
    )
    assert Squares().sha256() == Squares().sha256()
    assert data_sha256(None) is None
    assert data_sha256(tf.TensorSpec([3])) is None
