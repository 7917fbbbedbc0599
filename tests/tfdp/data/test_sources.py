from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfdp
from tests.running import run
from tfdp.data.sources import Source, as_data

ROWS = np.arange(12.0).reshape(6, 2)
CLASSES = np.arange(6)


def read(source: Source, *indices: int) -> Any:
    return tf.nest.map_structure(np.array, source.read(tf.constant(indices, tf.int64)))


def test_a_source_has_a_length_and_reads_any_example() -> None:
    source = tfdp.from_arrays(ROWS, CLASSES, sample_weight=CLASSES / 2)
    assert len(source) == 6
    features, labels, weights = read(source, 4, 0, 4)
    np.testing.assert_array_equal(features, ROWS[[4, 0, 4]])
    assert labels.tolist() == [4, 0, 4]
    assert weights.tolist() == [2, 0, 2]
    assert read(source)[0].shape == (0, 2)


def test_lists_of_scalars_are_arrays_and_other_lists_are_structures() -> None:
    source = tfdp.from_arrays([{"a": ROWS}, ROWS], ["x", "y"] * 3, [0.5] * 6)
    (named, rows), labels, weights = read(source, 3, 2)
    np.testing.assert_array_equal(named["a"], rows)
    assert labels.tolist() == [b"y", b"x"]
    assert weights.tolist() == [0.5, 0.5]


@pytest.mark.parametrize("length", [1, 2, 3])
def test_a_batch_has_an_element_for_each_argument(length: int) -> None:
    source = tfdp.from_arrays(*(ROWS, CLASSES, CLASSES)[:length])
    assert len(read(source, 1)) == len(source.element_spec()) == length


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [
        ("float64", "float32"),
        ("float16", "float32"),
        ("float32", "float32"),
        ("uint8", "uint8"),
        ("int64", "int64"),
        ("bool", "bool"),
    ],
)
def test_floats_are_cast_to_float32(dtype: str, expected: str) -> None:
    features, labels = tfdp.from_arrays(ROWS.astype(dtype), ROWS.astype(dtype)).element_spec()
    assert features == labels == tf.TensorSpec([2], expected)


def test_floats_are_cast_to_the_floatx_of_keras(float64: None) -> None:
    assert keras.config.floatx() == "float64"
    assert tfdp.from_arrays(ROWS.astype("float32")).element_spec()[0].dtype == tf.float64


def test_structures_and_strings_stay_what_they_are() -> None:
    features = {"row": ROWS, "text": np.array(["a", "bc", "d", "", "é", "f"])}
    source = tfdp.from_arrays(features, (CLASSES, ROWS))
    spec = source.element_spec()
    assert spec[0]["text"] == tf.TensorSpec([], tf.string)
    features, (numbers, rows) = read(source, 4, 1)
    assert [text.decode() for text in features["text"]] == ["é", "bc"]
    np.testing.assert_array_equal(features["row"], rows)
    assert numbers.tolist() == [4, 1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((ROWS, CLASSES[:5]), r"shapes \[\(6, 2\), \(5,\)\]"),
        (({"a": ROWS, "b": ROWS[:1]},), "the first dimension"),
        ((np.float32(3),), r"shapes \[\(\)\]"),
        ((ROWS, None, CLASSES), "sample_weight is given without labels"),
        ((None, CLASSES), "dtype object"),
        ((np.array([{}, []], object),), r"dtype object .*\{\}"),
    ],
)
def test_wrong_arrays_are_refused(arguments: Any, message: str) -> None:
    with pytest.raises(tfdp.BadInput, match=message):
        tfdp.from_arrays(*arguments)


def on_disk(folder: Path, array: np.ndarray, order: str = "C") -> np.memmap:
    path = folder / f"{len(list(folder.iterdir()))}.bin"
    written = np.memmap(path, array.dtype, "w+", shape=array.shape, order=order)
    written[:] = array
    written.flush()
    return np.memmap(path, array.dtype, "r", shape=array.shape, order=order)


@pytest.mark.parametrize(
    ("dtype", "view", "order"),
    [
        *((dtype, np.s_[:], "C") for dtype in ("float64", "float16", "uint8", ">i2", "bool", "S3")),
        (">f4", np.s_[1:], "C"),
        (">f4", np.s_[::2], "C"),
        (">f4", np.s_[:, 1:3], "C"),
        (">f4", np.s_[:], "F"),
    ],
)
def test_arrays_on_disk_are_read_as_those_in_memory(
    dtype: str, view: Any, order: str, tmp_path: Path
) -> None:
    values = np.arange(60).reshape(12, 5).astype(dtype)
    array = on_disk(tmp_path, values, order)[view]
    assert isinstance(array, np.memmap)
    native = values[view].astype(values.dtype.newbyteorder("="))
    source = tfdp.from_arrays({"rows": array}, array)
    expected = tfdp.from_arrays({"rows": native}, native)
    assert len(source) == len(expected)
    assert source.element_spec() == expected.element_spec()
    for indices in ([4, 0, 4], [], range(len(source))):
        features, labels = read(source, *indices)
        features_in_memory, labels_in_memory = read(expected, *indices)
        np.testing.assert_array_equal(features["rows"], features_in_memory["rows"])
        np.testing.assert_array_equal(labels, labels_in_memory)


def test_arrays_on_disk_and_in_memory_can_be_combined(tmp_path: Path) -> None:
    features = {"disk": on_disk(tmp_path, ROWS), "memory": ROWS}
    (both, labels) = read(tfdp.from_arrays(features, CLASSES), 5, 2)
    np.testing.assert_array_equal(both["disk"], both["memory"])
    assert labels.tolist() == [5, 2]
    with pytest.raises(tfdp.BadInput, match=r"shapes \[\(6, 2\), \(5,\)\]"):
        tfdp.from_arrays(features["disk"], CLASSES[:5])


def test_arrays_on_disk_do_not_occupy_memory(tmp_path: Path) -> None:
    # A sparse file of 6 GB; float16, so a float32 copy would be noticed too.
    script = """
import itertools, resource, sys
import numpy as np, tensorflow as tf, tfdp
from tfdp.data import pipeline
from tfdp.data.order import Order
from tfdp.workers.collectives import workers_of

ROWS, WIDTH = 3_000_000, 1024
array = np.memmap(sys.argv[1], "float16", "w+", shape=(ROWS, WIDTH))
array[[7, ROWS - 1], 5] = 1, 2
workers = workers_of(tf.distribute.get_strategy())

def read(features):
    source = tfdp.from_arrays({"features": features}, np.zeros(len(features), "uint8"))
    batches = pipeline.from_source(source, Order(len(source), 64), workers)
    ((first, _), *_), *_ = itertools.islice(batches.iterator(), 20)
    assert first["features"].dtype == tf.float32
    in_order = Order(len(source), 64, shuffle=False)
    batches = pipeline.from_source(source, in_order, workers, training=False)
    for _ in itertools.islice(batches.iterator(), 20):
        pass
    return source.read([7, len(features) - 1])[0]["features"][:, 5].numpy().tolist()

peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
read(np.zeros((640, WIDTH), "float16"))
before = peak()
assert read(array) == [1, 2]
print("GREW", peak() - before, "MB")
"""
    output = run(["python", "-c", script, str(tmp_path / "large.bin")])
    grew_mb = int(output.partition("GREW ")[2].split()[0])
    assert grew_mb < 600, output


SIDES = (3, 8, 5, 4)


@pytest.fixture
def images(tmp_path: Path) -> list[Path]:
    """Grey images of several sizes; number n has the brightness 10 n."""
    paths = []
    for number, side in enumerate(SIDES):
        paths.append(tmp_path / f"of class {number % 2}" / f"{number}.png")
        paths[-1].parent.mkdir(exist_ok=True)
        pixels = tf.fill([side, side, 1], tf.constant(10 * number, tf.uint8))
        paths[-1].write_bytes(tf.io.encode_png(pixels).numpy())
    return paths


def load(path: tf.Tensor) -> tf.Tensor:
    return tf.image.resize(tf.io.decode_png(tf.io.read_file(path), channels=1), [4, 4])


def test_files_are_loaded_and_stacked(images: list[Path]) -> None:
    source = tfdp.from_files(images, [0, 1, 0, 1], load, sample_weight=[1.0, 2.0, 3.0, 4.0])
    assert len(source) == 4
    assert source.element_spec()[0] == tf.TensorSpec([4, 4, 1], tf.float32)
    features, labels, weights = read(source, 3, 0, 3, 1)
    for feature, number in zip(features, (3, 0, 3, 1), strict=True):
        np.testing.assert_allclose(feature, np.full((4, 4, 1), 10.0 * number))
    assert labels.tolist() == [1, 0, 1, 1]
    assert weights.tolist() == [4, 1, 4, 2]
    assert read(source)[0].shape == (0, 4, 4, 1)


def test_files_may_have_no_labels_or_structures_of_them(images: list[Path]) -> None:
    (features,) = read(tfdp.from_files(map(str, images), None, lambda path: {"path": path}), 2)
    assert [Path(path.decode()) for path in features["path"]] == [images[2]]
    _, labels = read(tfdp.from_files(images, {"a": CLASSES[:4], "b": ROWS[:4]}, load), 1)
    assert labels["a"].tolist() == [1]
    np.testing.assert_array_equal(labels["b"], ROWS[1:2])


def test_a_missing_file_is_named_when_it_is_read(images: list[Path]) -> None:
    source = tfdp.from_files(images, CLASSES[:4], load)
    images[2].unlink()
    assert len(read(source, 0, 1, 3)[0]) == 3
    with pytest.raises(tf.errors.NotFoundError, match=r"class 0/2\.png"):
        read(source, 1, 2)


@pytest.mark.parametrize(
    ("labels", "message"),
    [([1, 2], r"shapes \[\(4,\), \(2,\), "), (None, "sample_weight is given without labels")],
)
def test_wrong_labels_of_files_are_refused(labels: Any, message: str, images: list[Path]) -> None:
    with pytest.raises(tfdp.BadInput, match=message):
        tfdp.from_files(images, labels, load, sample_weight=np.ones(4))
    with pytest.raises(tfdp.BadInput, match="paths is empty"):
        tfdp.from_files([], [], load)


class Squares(Source):
    """A source that a user might write."""

    def __len__(self) -> int:
        return 5

    def read(self, indices: tf.Tensor) -> Any:
        return ({"n": indices}, tf.square(indices))


def test_a_users_source_needs_two_methods() -> None:
    assert Squares().element_spec() == (
        {"n": tf.TensorSpec([], tf.int64)},
        tf.TensorSpec([], tf.int64),
    )
    assert Squares().run_length == 1
    with pytest.raises(TypeError, match="abstract"):
        Source()  # type: ignore[abstract]


def test_sources_and_datasets_stay_and_arrays_become_a_source() -> None:
    source, dataset = Squares(), tf.data.Dataset.range(3)
    assert as_data(source) is source
    assert as_data(dataset) is dataset
    assert len(as_data(ROWS, CLASSES)) == 6


@pytest.mark.parametrize("extra", [{"y": CLASSES}, {"sample_weight": CLASSES}])
@pytest.mark.parametrize("data", [Squares(), tf.data.Dataset.range(3)])
def test_labels_are_refused_beside_data_that_contains_its_own(data: Any, extra: Any) -> None:
    with pytest.raises(tfdp.BadInput, match="labels or weights were given beside"):
        as_data(data, **extra)


def test_a_distributed_dataset_is_refused(strategies: Any) -> None:
    distributed = strategies(2).experimental_distribute_dataset(tf.data.Dataset.range(8).batch(2))
    with pytest.raises(tfdp.BadInput, match="distributed already"):
        as_data(distributed)
