"""Tables, texts, ragged features and images: the model, a session and a server answer alike."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfdp
from serving.client import Client
from tests.running import Process
from tests.tfdp.servables import loaded
from tfdp.publishing import load_check, load_check_process

WORDS = np.array([b"red", b"blue", b"?", b"red"], object)
LINES = np.array([b"red blue", b"", b"Blue! red blue", b"green"], object)
IDS = tf.ragged.constant([[1, 2], [], [3], [1, 1, 1]], tf.int64)
IMAGES = np.array(
    [tf.io.encode_jpeg(np.full((4, 4, 3), shade, np.uint8)).numpy() for shade in (0, 90, 180, 250)],
    object,
)


@dataclasses.dataclass(frozen=True)
class Case:
    """A published model.

    Args:
        model: the live model.
        preprocess: preprocessing of one example.
        features: the source's features, first dimension: examples.
        sent: inputs of ``serving_default``.
        examples: values of a ``tf.train.Example`` for each example.
    """

    model: keras.Model
    preprocess: Callable[..., Any] | None
    features: Any
    sent: dict[str, np.ndarray]
    examples: list[dict[str, Any]]

    def answer(self) -> np.ndarray:
        """Returns what the live model computes, example by example."""
        rows = [
            tf.nest.map_structure(
                lambda each, row=row: tf.convert_to_tensor(each[row]), self.features
            )
            for row in range(len(WORDS))
        ]
        if self.preprocess is not None:
            rows = [self.preprocess(row, False, tf.zeros([2], tf.int32)) for row in rows]
        return self.model(tf.stack(rows), training=False).numpy()  # type: ignore[no-any-return]


def lookup_layer(folder: Path) -> Case:
    lookup = keras.layers.StringLookup(vocabulary=["red", "blue"])
    inputs = keras.Input((), dtype="int64")
    model = keras.Model(inputs, keras.layers.Dense(3)(keras.layers.Embedding(3, 2)(inputs)))
    model.compile(loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))

    def preprocess(word: tf.Tensor, training: bool, seed: tf.Tensor) -> tf.Tensor:
        return lookup(word)

    return Case(model, preprocess, WORDS, {"features": WORDS}, [{"features": w} for w in WORDS])


def table_of_a_file(folder: Path) -> Case:
    (folder / "vocabulary.txt").write_text("red\nblue\n")
    whole_line, number = tf.lookup.TextFileIndex.WHOLE_LINE, tf.lookup.TextFileIndex.LINE_NUMBER
    table = tf.lookup.StaticHashTable(
        tf.lookup.TextFileInitializer(
            str(folder / "vocabulary.txt"), tf.string, whole_line, tf.int64, number
        ),
        default_value=7,
    )
    inputs = keras.Input((1,))
    model = keras.Model(inputs, keras.layers.Dense(1)(inputs))

    def preprocess(word: tf.Tensor, training: bool, seed: tf.Tensor) -> tf.Tensor:
        return tf.cast(table[word][tf.newaxis], tf.float32)

    return Case(model, preprocess, WORDS, {"features": WORDS}, [{"features": w} for w in WORDS])


def text_vectorization(folder: Path) -> Case:
    vectorize = keras.layers.TextVectorization(vocabulary=["red", "blue"], output_mode="count")
    inputs = keras.Input((), dtype="string")
    model = keras.Model(inputs, keras.layers.Dense(1)(vectorize(inputs)))
    return Case(model, None, LINES, {"features": LINES}, [{"features": line} for line in LINES])


def ragged_ids(folder: Path) -> Case:
    inputs = keras.Input((2,))
    model = keras.Model(inputs, keras.layers.Dense(1)(inputs))

    def preprocess(features: Any, training: bool, seed: tf.Tensor) -> tf.Tensor:
        ids = features["ids"]
        return tf.cast(tf.stack([tf.reduce_sum(ids), tf.size(ids, tf.int64)]), tf.float32)

    sent = {"ids": IDS.to_tensor(9).numpy(), "ids_length": IDS.row_lengths().numpy()}
    return Case(model, preprocess, {"ids": IDS}, sent, [{"ids": row} for row in IDS.to_list()])


def jpeg_images(folder: Path) -> Case:
    inputs = keras.Input((4, 4, 3))
    model = keras.Model(inputs, keras.layers.Dense(2)(keras.layers.Flatten()(inputs)))
    model.compile(loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))

    def preprocess(features: Any, training: bool, seed: tf.Tensor) -> tf.Tensor:
        image = tf.io.decode_jpeg(features["jpeg"], channels=3)
        return tf.ensure_shape(tf.cast(image, tf.float32) / 255, [4, 4, 3])

    examples = [{"jpeg": image} for image in IMAGES]
    return Case(model, preprocess, {"jpeg": IMAGES}, {"jpeg": IMAGES}, examples)


CASES = (lookup_layer, table_of_a_file, text_vectorization, ragged_ids, jpeg_images)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, dict[str, Case], str]]:
    """All cases, published, and one server of them."""
    folder = tmp_path_factory.mktemp("served")
    cases = {make.__name__: make(folder) for make in CASES}

    def here(version: Path, answers: Path, requests: Any) -> None:
        load_check_process.main(str(version), str(answers), [str(path) for path in requests])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(load_check, "_in_fresh_process", here)  # it is quicker
        for name, case in cases.items():
            tfdp.export(
                case.model,
                folder / name,
                preprocess=case.preprocess,
                features=tf.data.Dataset.from_tensor_slices(case.features),
                warmup_batch_sizes=[1, 4],
            )
    (folder / "vocabulary.txt").unlink()  # a version has its own
    configs = [
        f'config {{ name: "{name}" base_path: "{folder / name}" model_platform: "tensorflow" }}'
        for name in cases
    ]
    config = folder / "models.config"
    config.write_text(f"model_config_list {{ {' '.join(configs)} }}")
    command = ["python", "-m", "serving.server", "--port=0", f"--model_config_file={config}"]
    with Process(command) as server:
        yield folder, cases, f"127.0.0.1:{server.wait_for(r'ready on 127[.]0[.]0[.]1:([0-9]+)')[1]}"


def serialized(values: dict[str, Any]) -> bytes:
    example = tf.train.Example()
    for name, value in values.items():
        feature = example.features.feature[name]
        if isinstance(value, bytes):
            feature.bytes_list.value.append(value)
        else:
            feature.int64_list.value.extend(value)
    return example.SerializeToString()  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", [make.__name__ for make in CASES])
def test_a_model_a_session_and_a_server_answer_alike(
    name: str, served: tuple[Path, dict[str, Case], str]
) -> None:
    folder, cases, target = served
    case = cases[name]
    expected = case.answer()
    assert len(np.unique(expected.round(5), axis=0)) > 1  # it depends on what is sent
    examples = np.array([serialized(values) for values in case.examples], object)
    with loaded(folder / name / "1") as session, Client(target, timeout_s=30) as client:
        answers = [session.ask(**case.sent), client.predict(name, case.sent)]
        for answer in answers:
            np.testing.assert_allclose(answer["outputs"], expected, rtol=1e-5, atol=1e-6)
        if expected.shape[1] == 1:
            regressed = [
                session.ask("regress", inputs=examples)["outputs"][:, 0],
                client.regress(name, case.examples),
            ]
            for numbers in regressed:
                np.testing.assert_allclose(numbers, expected[:, 0], rtol=1e-5, atol=1e-6)
        else:
            classified = session.ask("classify", inputs=examples)
            found = client.classify(name, case.examples)
            for scores in (classified["scores"], found.scores):
                np.testing.assert_allclose(
                    scores, tf.nn.softmax(expected).numpy(), rtol=1e-5, atol=1e-6
                )
            labels = np.array([[b"%d" % column for column in range(expected.shape[1])]] * 4)
            assert classified["classes"].astype("S").tolist() == labels.tolist()
            assert np.asarray(found.labels).astype("S").tolist() == labels.tolist()
