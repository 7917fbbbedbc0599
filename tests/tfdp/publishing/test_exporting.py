from __future__ import annotations

import functools
import hashlib
import itertools
import json
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfdp
from tests.tfdp.returning import Returning
from tests.tfdp.servables import loaded, warmup_requests
from tfdp.errors import Refused, TrainingError
from tfdp.publishing import exporting, publish_recipe
from tfdp.publishing.servable import published, read_provenance, versions
from tfdp.publishing.settings import PublishSettings
from tfdp.recipe import Recipe

ROWS = np.random.default_rng(5).integers(0, 256, (12, 4)).astype(np.uint8)


pytestmark = pytest.mark.usefixtures("reloaded_here")


@functools.cache
def dense() -> keras.Model:
    keras.utils.set_random_seed(2)
    return keras.Sequential(
        [
            keras.layers.Input((4,)),
            keras.layers.Dense(8, activation="tanh"),
            keras.layers.Dropout(0.5),
            keras.layers.Dense(3),
        ]
    )


def scaled(features: tf.Tensor, training: bool, seed: tf.Tensor) -> tf.Tensor:
    noise = tf.random.stateless_uniform([4], seed) if training else 0.0
    return tf.cast(features, tf.float32) / 255 + noise


def test_a_version_gets_the_next_number(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "model"
    assert tfdp.export(dense(), folder, warmup_batch_sizes=[]) == folder / "1"
    (folder / "41").mkdir()
    assert tfdp.export(dense(), str(folder), warmup_batch_sizes=[]) == folder / "42"
    assert sorted(path.name for path in folder.iterdir()) == ["1", "41", "42"]


def test_a_version_takes_raw_features_and_is_warmed_up_with_them(tmp_path: Path) -> None:
    folder = tmp_path / "digits"
    source = tfdp.from_arrays(ROWS, np.zeros(12))
    version = tfdp.export(dense(), folder, preprocess=scaled, features=source)
    requests = warmup_requests(version)
    batches = [tf.make_ndarray(request.inputs["features"]) for request in requests]
    assert [len(rows) for rows in batches] == [1, 2, 4, 8, 16, 32]
    with loaded(version) as servable:
        assert servable.inputs() == {"features": (tf.uint8.as_datatype_enum, [-1, 4])}
        signature = servable.signatures["serving_default"]
        assert signature.method_name == "tensorflow/serving/predict"
        for request, rows in zip(requests, batches, strict=True):
            assert request.model_spec.name == "digits"
            assert request.model_spec.signature_name == "serving_default"
            np.testing.assert_array_equal(rows, np.resize(ROWS, rows.shape))
            outputs = servable.ask(features=rows)
            assert outputs.keys() == {"outputs"}
            expected = dense()(rows / np.float32(255))
            np.testing.assert_allclose(outputs["outputs"], expected, rtol=1e-5)


def test_a_model_on_several_replicas_is_exported(strategies: Any, tmp_path: Path) -> None:
    with strategies(2).scope():
        model = keras.Sequential([keras.layers.Input((4,)), keras.layers.Dense(3)])
        model.compile("sgd", "mse")
    rows = ROWS.astype(np.float32)
    tfdp.fit(model, rows, np.zeros((12, 3)), verbose=0)
    version = tfdp.export(model, tmp_path, features=tfdp.from_arrays(rows), warmup_batch_sizes=[])
    served = tf.saved_model.load(str(version)).signatures["serving_default"]
    kernel, bias = model.get_weights()
    answers = served(features=tf.constant(rows))["outputs"]
    np.testing.assert_allclose(answers, rows @ kernel + bias, rtol=1e-4)


def test_a_version_that_answers_differently_is_not_published(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = tf.saved_model.save

    def of_other_weights(*arguments: Any, **options: Any) -> None:
        weights = dense().get_weights()
        dense().set_weights([weight + 1 for weight in weights])
        try:
            save(*arguments, **options)
        finally:
            dense().set_weights(weights)

    monkeypatch.setattr(tf.saved_model, "save", of_other_weights)
    source = tfdp.from_arrays(ROWS.astype(np.float32))
    with pytest.raises(TrainingError, match=r"answers outputs differently .* not published"):
        tfdp.export(dense(), tmp_path, features=source)
    assert not list(tmp_path.iterdir())


def test_batch_sizes_of_warm_up_requests_can_be_chosen(tmp_path: Path) -> None:
    (request,) = warmup_requests(tfdp.export(dense(), tmp_path, warmup_batch_sizes=[3]))
    zeros = tf.make_ndarray(next(iter(request.inputs.values())))
    np.testing.assert_array_equal(zeros, np.zeros((3, 4), np.float32))
    assert warmup_requests(tfdp.export(dense(), tmp_path, warmup_batch_sizes=[])) == []
    for bad in ([0], [1] * 1001):
        with pytest.raises(tfdp.BadInput, match="--warmup_batch_sizes"):
            tfdp.export(dense(), tmp_path, warmup_batch_sizes=bad)


def test_a_version_is_warmed_up_with_features_of_a_dataset(tmp_path: Path) -> None:
    words = ["one", "three", "eleven"]
    lengths = tf.data.Dataset.from_generator(
        lambda: ((list(word), 0) for word in words),
        output_signature=(tf.TensorSpec([None], tf.string), tf.TensorSpec([], tf.int32)),
    )
    count = keras.Sequential(
        [keras.layers.Input((None,), dtype="string"), keras.layers.Lambda(tf.shape)]
    )
    version = tfdp.export(count, tmp_path, features=lengths, warmup_batch_sizes=[3])
    (request,) = warmup_requests(version)
    expected = np.array([list(word.ljust(6, " ")) for word in words], "S1")
    np.testing.assert_array_equal(
        tf.make_ndarray(request.inputs["features"]), np.where(expected == b" ", b"", expected)
    )


def test_specs_whose_zeros_the_model_refuses_give_no_warm_up(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def decode(features: tf.Tensor, training: bool, seed: tf.Tensor) -> tf.Tensor:
        return tf.ensure_shape(tf.io.decode_raw(features, tf.float32), [4])

    spec = tf.TensorSpec([], tf.string)
    version = tfdp.export(dense(), tmp_path, preprocess=decode, features=spec)
    assert "the model does not take zeros and empty strings" in capsys.readouterr().err
    assert warmup_requests(version) == []
    rows = ROWS.astype(np.float32)
    with loaded(version) as servable:
        answer = servable.ask(features=[row.tobytes() for row in rows])["outputs"]
    np.testing.assert_allclose(answer, dense().predict(rows, verbose=0), rtol=1e-5)


@pytest.mark.parametrize("limit", ["variables", "warm-up"])
def test_a_full_disk_loses_nothing(limit: str, tmp_path: Path) -> None:
    tfdp.export(dense(), tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    keras.utils.set_random_seed(3)
    large = keras.Sequential([keras.layers.Input((900,)), keras.layers.Dense(900)])
    kept = resource.getrlimit(resource.RLIMIT_FSIZE)
    bytes_ = 1 << (17 if limit == "variables" else 22)
    sizes = [1] if limit == "variables" else [2000]
    resource.setrlimit(resource.RLIMIT_FSIZE, (bytes_, kept[1]))
    try:
        with pytest.raises((OSError, tf.errors.OpError)):
            tfdp.export(large, tmp_path, warmup_batch_sizes=sizes)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, kept)
    after = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert after == before
    assert tfdp.export(dense(), tmp_path) == tmp_path / "2"


def test_gates_are_checked_before_anything_is_written(tmp_path: Path) -> None:
    source = tfdp.from_arrays(ROWS.astype(np.float32))

    def publish(accuracy: float, **gates: Any) -> Path:
        return tfdp.export(
            dense(),
            tmp_path,
            features=source,
            warmup_batch_sizes=[],
            eval_metrics={"accuracy": accuracy, "loss": 3.0},
            **gates,
        )

    with pytest.raises(Refused, match=r"accuracy is 0\.5, below --require_min=accuracy:0\.97"):
        publish(0.5, require_min={"accuracy": 0.97})
    with pytest.raises(Refused, match="loss is 3, above --require_max=loss:2"):
        publish(0.5, require_max={"loss": 2})
    with pytest.raises(tfdp.BadInput, match="--require_min=auc:1: evaluations give accuracy, loss"):
        publish(0.5, require_min={"auc": 1})
    assert not list(tmp_path.iterdir())
    publish(0.9, not_worse_than_current=0.01)  # no version to compare with
    publish(0.95)
    with pytest.raises(Refused, match=r"accuracy is 0\.93 and that of .*2, which is served"):
        publish(0.93, not_worse_than_current=0.01)
    config = tmp_path.parent / "stable.config"
    config.write_text(
        f'model_config_list {{ config {{ name: "{tmp_path.name}" base_path: "/models/x"'
        ' version_labels { key: "stable" value: 1 } } }'
    )
    publish(0.93, not_worse_than_current=0.01, models_config=config)
    metrics = [read_provenance(path)["eval_metrics"] for path in versions(tmp_path).values()]
    assert [scores["accuracy"] for scores in metrics] == [0.9, 0.95, 0.93]


def test_old_versions_are_removed_unless_servers_need_them(tmp_path: Path) -> None:
    folder = tmp_path / "digits"
    for number in range(7, 12):
        (folder / str(number)).mkdir(parents=True)
        if number > 7:  # something else wrote version 7
            (folder / str(number) / "tfdp.json").write_text("{}")
    (tmp_path / "models.config").write_text(
        'model_config_list { config { name: "digits" base_path: "/models/digits"'
        ' version_labels { key: "canary" value: 8 } } }'
    )
    tfdp.export(dense(), folder, keep=2, warmup_batch_sizes=[])
    assert sorted(path.name for path in folder.iterdir()) == ["11", "12", "7", "8"]


def test_a_published_version_is_published_again_only_with_other_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    provenance = {"run": "a", "step": 3, "weights_sha256": "w"}
    (tmp_path / "1").mkdir()
    (tmp_path / "1" / "tfdp.json").write_text(json.dumps(provenance))
    recipe = Recipe("mine", "digest", None, *[lambda *_: None] * 2, *[None] * 5)
    monkeypatch.setattr(exporting, "export", lambda *_, **options: tmp_path / "2")

    def publish(weights_sha256: str = "w", **flags: Any) -> Path:
        about = provenance | {"weights_sha256": weights_sha256, "eval_metrics": {"mae": 1.0}}
        settings = PublishSettings(**flags)
        return publish_recipe.publish(tmp_path, settings, recipe, dense(), None, None, about)

    assert publish(require_max=("mae:1",)) == tmp_path / "1"
    with pytest.raises(Refused, match=r"mae is 1, above --require_max=mae:0\.5"):
        publish(require_max=("mae:0.5",))
    assert publish("others, which a callback has put back") == tmp_path / "2"


def test_tables_and_layers_in_preprocess_become_part_of_a_version(tmp_path: Path) -> None:
    vocabulary = tmp_path / "words.txt"
    vocabulary.write_text("one\ntwo\n")
    lengths = tf.lookup.StaticHashTable(
        tf.lookup.KeyValueTensorInitializer(tf.constant(["one", "two"]), tf.constant([3.0, 4.0])),
        -1.0,
    )
    lines = tf.lookup.TextFileInitializer(
        *(str(vocabulary), tf.string, tf.lookup.TextFileIndex.WHOLE_LINE),
        *(tf.int64, tf.lookup.TextFileIndex.LINE_NUMBER),
    )
    from_file = tf.lookup.StaticVocabularyTable(lines, 1)
    words = keras.layers.TextVectorization(output_sequence_length=2)
    words.adapt(["one two", "two"])
    scale = tf.Variable(10.0)

    def look_up(features: tf.Tensor, training: bool, seed: tf.Tensor) -> tf.Tensor:
        numbers = [lengths.lookup(features), scale * tf.cast(from_file.lookup(features), "float32")]
        return tf.concat([numbers, tf.cast(words(features), tf.float32)], axis=0)

    identity = keras.Sequential([keras.layers.Input((4,)), keras.layers.Activation("linear")])
    source = tfdp.from_arrays(np.array(["one", "two", "three"]))
    check(identity, tmp_path / "m", look_up, source)
    version = tfdp.export(identity, tmp_path / "m", preprocess=look_up, features=source)
    vocabulary.unlink()
    with loaded(version) as servable:
        answer = servable.ask(features=["one", "two", "three"])["outputs"]
    np.testing.assert_array_equal(answer, [[3, 0, 3, 0], [4, 10, 2, 0], [-1, 20, 1, 0]])


def check(model: keras.Model, folder: Path, preprocess: Any, features: Any) -> None:
    """What ``python -m tfdp.train`` checks before the first step."""
    more: dict[str, Any] = {"class_names": None, "models_config": None}
    exporting.check(model, folder, preprocess=preprocess, features=features, **more)


class Pair(keras.Model):
    """A model that its own ``train_step`` would train, as a GAN."""

    def __init__(self) -> None:
        super().__init__()
        self.generator = keras.Sequential([keras.layers.Input((2,)), keras.layers.Dense(4)])
        self.critic = keras.Sequential([keras.layers.Input((4,)), keras.layers.Dense(1)])


ITERATOR = iter(tf.data.Dataset.range(9).repeat())


@pytest.mark.parametrize(
    ("model", "preprocess", "message"),
    [
        (Pair, None, r"a Pair, has no call\(\), .*tfdp\.export\(model\.generator, …\) or tfdp"),
        (lambda: Returning(lambda x: {"a": [x], "a_0": x}), None, "would be called 'a_0'"),
        (lambda: Returning(keras.layers.Dense(1)), None, "had 0 weights and has 2 now"),
        (lambda: Returning(tf.RaggedTensor.from_tensor), None, "'outputs' is a RaggedTensor"),
        (lambda: Returning(lambda x: (x, None)), None, "'output_1' is a NoneType"),
        (
            lambda: Returning(lambda x: x["no"]),
            None,
            "can't be called with a batch of the features",
        ),
        (
            lambda: Returning(lambda x: tf.numpy_function(lambda each: each, [x], tf.float32)),
            None,
            "a server has no Python",
        ),
        (
            lambda: Returning(lambda x: x),
            lambda x, training, seed: x + tf.cast(next(ITERATOR), tf.float32),
            "uses a resource that a SavedModel can't contain",
        ),
    ],
)
def test_models_that_can_not_be_served_are_refused_before_training(
    model: Callable[[], keras.Model], preprocess: Any, message: str, tmp_path: Path
) -> None:
    with pytest.raises(tfdp.BadInput, match=message):
        check(model(), tmp_path, preprocess, tf.TensorSpec([4]))
    with pytest.raises(tfdp.BadInput, match=message):
        tfdp.export(model(), tmp_path, preprocess=preprocess, features=tf.TensorSpec([4]))
    assert not list(tmp_path.iterdir())


def test_a_part_of_a_model_is_exported(tmp_path: Path) -> None:
    model = Pair()
    version = tfdp.export(model.generator, tmp_path)
    rows = np.array([[1.0, -2.0]], np.float32)
    with loaded(version) as servable:
        answer = servable.ask(features=rows)["outputs"]
    np.testing.assert_allclose(answer, model.generator(rows), rtol=1e-5)


class Draws(keras.layers.Layer):
    """Adds random numbers of Keras, of Keras without a seed, or of TensorFlow, or drops units."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.seeds = keras.random.SeedGenerator(1)
        self.dropout = keras.layers.Dropout(0.5, seed=2)

    def build(self, shape: Any) -> None:
        self.calls = self.add_weight(shape=(), dtype="int32", initializer="zeros", trainable=False)

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        if self.kind == "counted":
            self.calls.assign_add(1)
            return inputs + keras.ops.cast(self.calls, "float32")
        if self.kind == "dropped":
            return self.dropout(inputs, training=True)
        shape = keras.ops.shape(inputs)
        if self.kind == "tensorflow":
            return inputs + tf.random.normal(shape)
        return inputs + keras.random.normal(
            shape, seed=self.seeds if self.kind == "seeds" else None
        )


@pytest.mark.parametrize("kind", ["seeds", "global", "dropped", "counted", "tensorflow"])
def test_models_that_draw_or_count_when_they_answer_do_so_when_served(
    kind: str, strategies: Any, tmp_path: Path
) -> None:
    with strategies(2).scope():
        model = keras.Sequential([keras.layers.Input((50,)), Draws(kind)])
    before = [variable.numpy() for variable in model.variables]
    version = tfdp.export(model, tmp_path / "ours", warmup_batch_sizes=[])
    for variable, value in zip(model.variables, before, strict=True):
        for each in strategies(2).experimental_local_results(variable.value):
            np.testing.assert_array_equal(each, value)
    rows = np.ones((3, 50), np.float32)
    with loaded(version) as servable:
        answers = [servable.ask(features=rows)["outputs"] for _ in range(3)]
    for first, second in itertools.combinations(answers, 2):
        assert (first != second).any()
    if kind in ("seeds", "dropped", "counted"):  # as plain Keras exports the model of one replica
        alone = keras.Sequential([keras.layers.Input((50,)), Draws(kind)])
        alone.export(tmp_path / "plain", verbose=False)
        plain = tf.saved_model.load(str(tmp_path / "plain"))
        for answer in answers:
            np.testing.assert_allclose(answer, plain.serve(rows), rtol=1e-6)


def test_a_version_contains_its_provenance(tmp_path: Path) -> None:
    source = tfdp.from_arrays(ROWS.astype(np.float32))
    about = {"run": "a", "step": 3}
    version = tfdp.export(dense(), tmp_path, features=source, about=about, warmup_batch_sizes=[])
    weights = hashlib.sha256(b"".join(array.tobytes() for array in dense().get_weights()))
    assert json.loads((version / "tfdp.json").read_text()) == {
        "run": "a",
        "step": 3,
        "weights_sha256": weights.hexdigest(),
        "data_sha256": source.sha256(),
        "eval_metrics": {},
        "tensorflow": tf.__version__,
        "keras": keras.__version__,
        "tfdp": tfdp.__version__,
    }
    assert published(tmp_path, {"run": "a"}) == version
