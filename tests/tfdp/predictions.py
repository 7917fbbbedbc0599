"""Predictions in a folder, read back as its readers do: without tfdp."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf


def parts(folder: Path) -> list[Path]:
    """The files of a folder's parts, in order."""
    return sorted(folder.glob("part-*"))


def read_back(folder: Path) -> dict[str, np.ndarray]:
    """All rows of a finished folder, by output."""
    about = json.loads((folder / "predictions.json").read_text())
    files = parts(folder)
    assert len(files) == about["parts"]
    read = {"npz": _read_npz, "tfrecord": _read_tfrecord, "jsonl": _read_jsonl}[about["format"]]
    of_parts = [read(path, about["outputs"]) for path in files]
    rows = {name: np.concatenate([each[name] for each in of_parts]) for name in about["outputs"]}
    assert {len(each) for each in rows.values()} == {about["rows"]}
    return rows


def _read_npz(path: Path, outputs: dict[str, Any]) -> dict[str, np.ndarray]:
    with np.load(path) as arrays:
        assert set(arrays) == set(outputs)
        return dict(arrays)


def _read_tfrecord(path: Path, outputs: dict[str, Any]) -> dict[str, np.ndarray]:
    kinds = {"f": tf.float32, "b": tf.float32, "i": tf.int64, "u": tf.int64, "s": tf.string}
    specs = {
        name: tf.io.FixedLenFeature(
            each["shape"], tf.int64 if each["dtype"] == "bool" else kinds[each["dtype"][0]]
        )
        for name, each in outputs.items()
    }
    rows = list(tf.data.TFRecordDataset(str(path)).map(lambda e: tf.io.parse_example(e, specs)))
    return {name: np.stack([row[name].numpy() for row in rows]) for name in outputs}


def _read_jsonl(path: Path, outputs: dict[str, Any]) -> dict[str, np.ndarray]:
    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is not JSON")

    rows = [json.loads(line, parse_constant=refuse) for line in path.read_text().splitlines()]
    found = {}
    for name, each in outputs.items():
        is_string = each["dtype"] == "string"
        values = [_value(row[name], is_string) for row in rows]
        dtype = {"string": "object", "bfloat16": "float32"}.get(each["dtype"], each["dtype"])
        found[name] = np.array(values, dtype)
    return found


def _value(value: Any, is_string: bool) -> Any:
    if isinstance(value, list):
        return [_value(each, is_string) for each in value]
    if not is_string:
        return float(value) if isinstance(value, str) else value
    return base64.b64decode(value["b64"]) if isinstance(value, dict) else value.encode()
