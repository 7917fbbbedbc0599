"""SavedModels as exporters write them, beside what their makers compute."""

from __future__ import annotations

from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from serving.server.models import loading
from serving.server.models.saved_model import SavedModel


def run(path: Path, **inputs: np.ndarray) -> np.ndarray:
    model = SavedModel(path)
    signature = model.signatures["serving_default"]
    feeds = {signature.inputs[name]: array for name, array in inputs.items()}
    (array,) = model.run(feeds, [*signature.outputs.values()], lambda: 30)
    model.close()
    return array


def test_a_keras_model_with_variables_and_a_lookup_table(tmp_path: Path):
    words = keras.Input((), dtype="string", name="words")
    pixels = keras.Input((4,), name="pixels")
    known = keras.layers.StringLookup(vocabulary=["a", "b"])(words)
    parts = [keras.layers.Embedding(4, 2)(known), keras.layers.BatchNormalization()(pixels)]
    model = keras.Model([words, pixels], keras.layers.Dense(3)(keras.layers.Concatenate()(parts)))
    model.export(str(tmp_path / "1"), verbose=False)
    w, p = np.array([b"a", b"b", b"?"], object), np.random.rand(3, 4).astype(np.float32)
    expected = model([tf.constant(w), tf.constant(p)], training=False).numpy()
    np.testing.assert_allclose(run(tmp_path / "1", words=w, pixels=p), expected, rtol=1e-6)


@pytest.mark.parametrize("is_large", [False, True])
def test_a_scalar_string_is_an_array_too(tmp_path: Path, is_large: bool):
    class Joins(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec([], tf.string, name="text")])
        def joined(self, text: tf.Tensor) -> tf.Tensor:
            for _ in range(200 if is_large else 1):  # a large graph runs in the session's threads
                text = tf.strings.join([text, "!"])
            return text

    module = Joins()
    tf.saved_model.save(module, str(tmp_path / "1"), signatures=module.joined)
    answer = run(tmp_path / "1", text=np.array(b"a", object))
    assert answer.shape == () and answer.item() == b"a" + b"!" * (200 if is_large else 1)


def test_a_table_from_a_file_moves_with_the_folder(tmp_path: Path):
    vocabulary = tmp_path / "vocabulary.txt"
    vocabulary.write_text("zero\none\n")
    module = tf.Module()
    line, number = tf.lookup.TextFileIndex.WHOLE_LINE, tf.lookup.TextFileIndex.LINE_NUMBER
    lines = tf.lookup.TextFileInitializer(str(vocabulary), tf.string, line, tf.int64, number)
    module.table = tf.lookup.StaticHashTable(lines, -1)
    spec = tf.TensorSpec([None], tf.string, name="words")
    lookup = tf.function(lambda words: {"index": module.table[words]}, input_signature=[spec])
    tf.saved_model.save(module, str(tmp_path / "made"), signatures=lookup)
    vocabulary.unlink()
    (tmp_path / "made").rename(tmp_path / "7")
    words = np.array([b"one", b"two", b"zero"], object)
    assert run(tmp_path / "7", words=words).tolist() == [1, -1, 0]


def test_what_is_no_saved_model_raises(tmp_path: Path):
    with pytest.raises((OSError, tf.errors.OpError)):
        SavedModel(tmp_path)


def test_a_version_that_fails_before_it_is_available_is_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    spec = tf.TensorSpec([], name="x")
    double = tf.function(lambda x: {"y": x * 2}, input_signature=[spec])
    tf.saved_model.save(tf.Module(), str(tmp_path / "1"), signatures=double)
    closed: list[SavedModel] = []
    monkeypatch.setattr(SavedModel, "close", lambda model: closed.append(model))
    seen: list[tuple[SavedModel, Path]] = []

    def refuse(model: SavedModel, path: Path) -> None:
        seen.append((model, path))
        raise ValueError("not this one")

    with pytest.raises(ValueError, match="not this one"):
        loading.loader(refuse)(tmp_path / "1")
    assert seen == [(closed[0], tmp_path / "1")]
