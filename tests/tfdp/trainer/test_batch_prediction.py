"""``tfdp.predict`` into a folder, in one process; on several workers, see test_predict."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfdp
from tests.tfdp.conftest import Strategies
from tests.tfdp.predictions import parts, read_back
from tfdp.errors import TrainingError
from tfdp.files import lock_workdir
from tfdp.trainer.prediction_files import check_can_hold, open_writer

FORMATS = ("npz", "tfrecord", "jsonl")
ROWS = np.random.default_rng(0).normal(size=(53, 5)).astype(np.float32)  # 6 batches of 8, and 5


@pytest.fixture(autouse=True)
def no_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaves out the waiting for the disk, which takes most of the time."""
    monkeypatch.setattr("tfdp.files._sync", lambda path: None)


def make_model() -> keras.Model:
    keras.utils.set_random_seed(1)
    inputs = keras.Input((5,))
    scores = keras.layers.Dense(3)(inputs)
    square = keras.layers.Reshape((2, 2))(keras.layers.Dense(4)(inputs))
    best = keras.ops.argmax(scores, axis=-1)
    return keras.Model(inputs, {"scores": scores, "more": [square, best]})


@pytest.fixture(scope="module")
def model() -> keras.Model:
    return make_model()


def by_keras(model: keras.Model) -> dict[str, np.ndarray]:
    rows = model.predict(ROWS, batch_size=8, verbose=0)
    return {"scores": rows["scores"], "more_0": rows["more"][0], "more_1": rows["more"][1]}


def assert_same(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert found.keys() == expected.keys()
    for name, rows in expected.items():
        np.testing.assert_array_equal(found[name], rows, strict=name != "more_1")


@pytest.mark.parametrize("format", FORMATS)
def test_rows_are_those_of_keras(format: Any, model: keras.Model, tmp_path: Path) -> None:
    folder = tfdp.predict(
        model, ROWS, batch_size=8, output=tmp_path / "a", format=format, batches_per_part=2
    )
    assert folder == tmp_path / "a"
    assert_same(read_back(folder), by_keras(model))
    assert [path.name for path in parts(folder)] == [f"part-{i:08}.{format}" for i in range(4)]


def test_a_model_that_runs_eagerly(tmp_path: Path) -> None:
    model = make_model()
    model.compile(run_eagerly=True)
    assert_same(read_back(tfdp.predict(model, ROWS, 8, output=tmp_path)), by_keras(model))


@pytest.mark.parametrize("replicas", [2, 4])  # the last batch has a row or two for each
def test_replicas_of_a_worker_share_a_batch(
    replicas: int, strategies: Strategies, tmp_path: Path
) -> None:
    with strategies(replicas).scope():
        model = make_model()
    found = read_back(tfdp.predict(model, ROWS, batch_size=8, output=tmp_path))
    for name, rows in by_keras(make_model()).items():
        np.testing.assert_allclose(found[name], rows, rtol=1e-5, atol=1e-6)


class Counted(tfdp.Source):
    """A source that notes the first row of each batch, and fails at one of them."""

    def __init__(self, fails_at: int = -1) -> None:
        self.seen: list[int] = []
        self._rows = tfdp.from_arrays(ROWS)
        self._fails_at = fails_at

    def __len__(self) -> int:
        return len(ROWS)

    def read(self, indices: tf.Tensor) -> Any:
        def note(indices: np.ndarray) -> np.ndarray:
            if len(indices) > 1:  # not the one that tells the shapes
                self.seen.append(int(indices[0]))
            if indices[0] == self._fails_at:
                raise OverflowError("this row can't be read")
            return indices

        return self._rows.read(
            tf.ensure_shape(tf.numpy_function(note, [indices], tf.int64), [None])
        )


def test_what_is_there_is_not_computed_again(model: keras.Model, tmp_path: Path) -> None:
    options: dict[str, Any] = {"batch_size": 8, "output": tmp_path, "batches_per_part": 2}
    with pytest.raises(tf.errors.OpError):
        tfdp.predict(model, Counted(fails_at=40), **options)  # the third part's second batch
    assert {path.name for path in tmp_path.iterdir() if path.name != ".lock"} == {
        *("part-00000000.npz", "part-00000001.npz", ".identity.json")
    }
    (tmp_path / ".part-00000002.npz.of_a_killed_process").touch()
    before = [path.stat().st_mtime_ns for path in parts(tmp_path)]
    source = Counted()
    tfdp.predict(model, source, **options)
    assert sorted(source.seen) == [32, 40, 48]
    assert [path.stat().st_mtime_ns for path in parts(tmp_path)][:2] == before
    assert_same(read_back(tmp_path), by_keras(model))
    assert not list(tmp_path.glob(".part-*"))


def test_a_finished_folder_stays_as_it_is(
    model: keras.Model, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tfdp.predict(model, Counted(), batch_size=8, output=tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    source = Counted()
    assert tfdp.predict(model, source, batch_size=8, output=tmp_path) == tmp_path
    assert source.seen == []
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before
    assert f"{tmp_path} is finished: 53 rows in 7 parts" in capsys.readouterr().err


def generated() -> Iterator[tuple[np.ndarray]]:
    for start in range(0, len(ROWS), 8):
        yield (ROWS[start : start + 8],)


def test_datasets_without_a_length_and_generators(model: keras.Model, tmp_path: Path) -> None:
    dataset = tf.data.Dataset.from_tensor_slices(ROWS).filter(lambda row: True).batch(8)
    options: dict[str, Any] = {"batches_per_part": 3}
    tfdp.predict(model, dataset, output=tmp_path / "a", **options)
    assert_same(read_back(tmp_path / "a"), by_keras(model))
    (tmp_path / "a" / "predictions.json").unlink()  # as if it had been killed
    kept = parts(tmp_path / "a")
    kept.pop(1).unlink()
    before = [path.stat().st_mtime_ns for path in kept]
    tfdp.predict(model, dataset, output=tmp_path / "a", **options)
    assert [path.stat().st_mtime_ns for path in kept] == before
    assert_same(read_back(tmp_path / "a"), by_keras(model))
    tfdp.predict(model, generated(), output=tmp_path / "b", **options)
    assert_same(read_back(tmp_path / "b"), by_keras(model))


@pytest.mark.parametrize("is_dataset", [False, True])
def test_steps(is_dataset: bool, model: keras.Model, tmp_path: Path) -> None:
    data = tf.data.Dataset.from_tensor_slices(ROWS).batch(8).repeat() if is_dataset else ROWS
    tfdp.predict(model, data, batch_size=8, steps=5, output=tmp_path)
    found = read_back(tmp_path)
    assert_same(found, {name: rows[:40] for name, rows in by_keras(model).items()})


def test_preprocess_and_labels(model: keras.Model, tmp_path: Path) -> None:
    labels = np.arange(len(ROWS))
    dataset = tf.data.Dataset.from_tensor_slices((ROWS * 2, labels)).batch(8)
    for name, data in {"a": tfdp.from_arrays(ROWS * 2, labels), "b": dataset}.items():
        tfdp.predict(
            model,
            data,
            batch_size=8,
            output=tmp_path / name,
            preprocess=lambda row, training, seed: row / 2 if not training else row,
        )
        assert_same(read_back(tmp_path / name), by_keras(model))


VALUES = {
    "float32": tf.constant([1 / 3, float("nan"), float("inf"), -float("inf"), 1e-45], tf.float32),
    "float64": tf.constant([1 / 3, float("nan"), float("inf"), -float("inf"), 5e-324], tf.float64),
    "float16": tf.constant([1 / 3, float("nan"), float("inf"), -float("inf"), 6e-8], tf.float16),
    "bfloat16": tf.constant([1 / 3, float("nan"), float("inf"), -float("inf"), 1.0], tf.bfloat16),
    "int64": tf.constant([2**63 - 1, -(2**63), 0, 1, 2], tf.int64),
    "uint8": tf.constant([0, 1, 2, 254, 255], tf.uint8),
    "bool": tf.constant([True, False, True, True, False]),
    "string": tf.constant(["plain", "grün\n", b"\xff\x00", "", '"']),
    "complex64": tf.constant([1j, 2, 3, 4, 5], tf.complex64),
}
REFUSED = {
    "npz": {"string"},
    "tfrecord": {"float64", "complex64"},
    "jsonl": {"complex64"},
}


class Constant(keras.Model):
    """Predicts the same values for each row."""

    def __init__(self, values: dict[str, tf.Tensor]) -> None:
        super().__init__()
        self._values = values

    def predict_step(self, data: Any) -> dict[str, tf.Tensor]:
        rows = tf.shape(data)[0]
        return {
            name: tf.repeat(values[tf.newaxis], rows, axis=0)
            for name, values in self._values.items()
        }


@pytest.mark.parametrize("format", FORMATS)
def test_values_come_back_exactly(format: Any, tmp_path: Path) -> None:
    values = {dtype: each for dtype, each in VALUES.items() if dtype not in REFUSED[format]}
    found = read_back(tfdp.predict(Constant(values), ROWS[:3], output=tmp_path, format=format))
    for dtype, rows in found.items():
        tensor = values[dtype]
        expected = (tf.cast(tensor, tf.float32) if dtype == "bfloat16" else tensor).numpy()
        assert rows.shape == (3, 5)
        np.testing.assert_array_equal(rows[2].astype(expected.dtype), expected)
        if format == "npz":
            assert rows.dtype == expected.dtype


@pytest.mark.parametrize("format", FORMATS)
def test_what_a_format_can_not_hold_is_refused(format: Any) -> None:
    for dtype, value in VALUES.items():
        if dtype not in REFUSED[format]:
            check_can_hold({"a": value}, format)
            continue
        with pytest.raises(tfdp.BadInput, match=f"'a' is {dtype}, which {format} can't hold"):
            check_can_hold({"a": value}, format)
    with pytest.raises(tfdp.BadInput, match="'a' is a RaggedTensor: "):
        check_can_hold({"a": tf.ragged.constant([[1], []])}, format)
    with pytest.raises(tfdp.BadInput, match="'a' is a single number"):
        check_can_hold({"a": tf.constant(1.0)}, format)


@pytest.mark.parametrize("format", FORMATS)
def test_a_full_disk(format: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, format: Any) -> Any:
        # What is written to /dev/full never fits.
        (path.parent / "full").symlink_to("/dev/full")
        return open_writer(path.parent / "full", format)

    monkeypatch.setattr("tfdp.trainer.prediction_folder.open_writer", full)
    message = f"part-00000000.{format} can't be written: No space left on device. The parts before"
    with pytest.raises(TrainingError, match=message):
        tfdp.predict(make_model(), ROWS, output=tmp_path, format=format)


class Growing(keras.Model):
    """Rows are as long as their batch."""

    def predict_step(self, data: Any) -> tf.Tensor:
        return tf.repeat(data[:, :1], tf.shape(data)[0], axis=1)


def test_rows_of_several_shapes(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"shape \(8,\), and then \(5,\).*tfrecord or jsonl"):
        tfdp.predict(Growing(), ROWS, batch_size=8, output=tmp_path / "a", batches_per_part=8)
    folder = tmp_path / "b"
    tfdp.predict(Growing(), ROWS, batch_size=8, output=folder, format="jsonl")
    lines = [json.loads(line) for path in parts(folder) for line in path.read_text().splitlines()]
    assert [len(line["outputs"]) for line in lines] == [8] * 48 + [5] * 5
    about = json.loads((folder / "predictions.json").read_text())
    assert about["outputs"] == {"outputs": {"shape": [None], "dtype": "float32"}}


def test_the_same_rows_make_the_same_bytes(model: keras.Model, tmp_path: Path) -> None:
    contents = []
    for name in ("a", "b"):
        tfdp.predict(model, ROWS, output=tmp_path / name)
        contents.append([path.read_bytes() for path in parts(tmp_path / name)])
    assert contents[0] == contents[1]


@pytest.fixture(scope="module")
def call(model: keras.Model, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The arguments of a finished prediction."""
    output = tmp_path_factory.mktemp("predictions")
    call = {"model": model, "x": ROWS, "batch_size": 8, "output": output, "batches_per_part": 2}
    tfdp.predict(**call)
    return call


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x": ROWS[:52]}, r"data_sha256 was .*; examples was 53 and is 52"),
        ({"x": ROWS + 1}, r"data_sha256 was "),
        ({"format": "jsonl"}, r"format was 'npz' and is 'jsonl'"),
        ({"batch_size": 9}, r"batch_size was 8 and is 9"),
        ({"batches_per_part": 3}, r"batches_per_part was 2 and is 3"),
        ({"steps": 2}, r"batches was 7 and is 2"),
        ({"model": keras.Sequential([keras.Input((5,)), keras.layers.Dense(2)])}, "weights_sha256"),
    ],
)
def test_a_folder_of_other_predictions_is_refused(
    changes: dict[str, Any], message: str, call: dict[str, Any]
) -> None:
    before = {path: path.stat().st_mtime_ns for path in call["output"].iterdir()}
    with pytest.raises(tfdp.BadInput, match=rf"has other predictions: .*{message}"):
        tfdp.predict(**call | changes)
    assert {path: path.stat().st_mtime_ns for path in call["output"].iterdir()} == before


def refuse(message: str, output: Path | str, **options: Any) -> None:
    data = options.pop("x", ROWS)
    with pytest.raises(tfdp.BadInput, match=message):
        tfdp.predict(make_model(), data, output=output, **options)


def test_folders_that_are_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    refuse(r"can't be written in .*/file: (File exists|Not a directory)", tmp_path / "file")
    refuse("has files that are not of a batch prediction, such as file", tmp_path)
    refuse(r"gs:/.*remote paths have no atomic rename", "gs://bucket/folder")
    refuse(r"can't be written in /proc/none", "/proc/none")
    (tmp_path / "file").unlink()
    tfdp.predict(make_model(), ROWS, output=tmp_path)


def test_data_and_arguments_that_are_refused(tmp_path: Path) -> None:
    dataset = tf.data.Dataset.from_tensor_slices(ROWS).batch(8)
    is_not = tf.data.Options()
    is_not.deterministic = False
    folder = tmp_path / "none"
    refuse("is shuffled", folder, x=dataset.shuffle(4, seed=1))
    refuse("deterministic=False", folder, x=dataset.with_options(is_not))
    refuse("never ends", folder, x=dataset.repeat())
    refuse("dataset is empty", folder, x=dataset.take(0))
    refuse("source is empty", folder, x=ROWS[:0])
    refuse("does not take the batches to predict", folder, x=ROWS[:, :4])
    refuse("does not go with callbacks", folder, callbacks=[keras.callbacks.Callback()])
    refuse("does not go with callbacks, nor with auto_shard", folder, auto_shard="file")
    assert not parts(folder)
    with pytest.raises(tfdp.BadInput, match="they go with output"):
        tfdp.predict(make_model(), ROWS, format="npz")


def test_the_line_for_people(
    model: keras.Model,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("tfdp.trainer.prediction_progress._LINE_EVERY_S", 0.0)
    (tmp_path / "a").mkdir()
    tfdp.predict(model, ROWS, batch_size=8, output=tmp_path / "a", batches_per_part=2)
    lines = capsys.readouterr().err.splitlines()
    rows = [
        re.fullmatch(r"tfdp: (\d+)/53 rows(  [\d,]+ rows/s  \d+ s left)?", x) for x in lines[:-1]
    ]
    assert [int(match[1]) for match in rows if match] == [8, 16, 24, 32, 40, 48, 53]
    assert rows[0] is not None and rows[0][2] is None
    assert all(match is not None and match[2] for match in rows[1:])
    tfdp.predict(model, ROWS, batch_size=8, output=tmp_path / "b", verbose=0)
    assert capsys.readouterr().err == ""


def test_one_prediction_at_a_time(model: keras.Model, tmp_path: Path) -> None:
    lock_workdir(tmp_path)
    with pytest.raises(tfdp.BadInput, match="another run uses the folder of predictions "):
        tfdp.predict(model, ROWS, output=tmp_path)


def test_a_dataset_that_has_shrunk_since_is_found_at_the_end(
    model: keras.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tfdp.trainer.prediction_folder._SEEN_WITHIN_S", 0.1)

    def of(rows: int) -> tf.data.Dataset:
        return tf.data.Dataset.from_tensor_slices(ROWS[:rows]).filter(lambda row: True).batch(8)

    def predict(rows: int) -> None:
        # A digest of specs and length can't tell the two datasets apart.
        tfdp.predict(model, of(rows), output=tmp_path, batches_per_part=1)

    predict(53)
    (tmp_path / "predictions.json").unlink()
    with pytest.raises(TrainingError, match=r"has the parts \[0, 1, .*, and the data makes 3"):
        predict(24)
