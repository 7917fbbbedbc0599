from __future__ import annotations

import functools
import json
import threading
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfdp
from tests.running import run
from tfdp import exporting
from tfdp.errors import TrainingError
from tfdp.exporting import published, versions

ROWS = np.random.default_rng(5).integers(0, 256, (12, 4)).astype(np.uint8)

# As TF Serving's loader does it: a session of the graph, tensors by name, no Keras.
ASK = """
import json, sys
import numpy as np
import tensorflow as tf

with tf.Graph().as_default() as graph, tf.compat.v1.Session(graph=graph) as session:
    loaded = tf.compat.v1.saved_model.load(session, ["serve"], sys.argv[1])
    signature = loaded.signature_def["serving_default"]
    feed = {
        signature.inputs[name].name: np.array(value, tf.as_dtype(signature.inputs[name].dtype)
            .as_numpy_dtype)
        for name, value in json.loads(sys.argv[2]).items()
    }
    fetch = {name: tensor.name for name, tensor in signature.outputs.items()}
    answers = {name: value.tolist() for name, value in session.run(fetch, feed).items()}
    shapes = {
        name: [dim.size for dim in tensor.tensor_shape.dim]
        for name, tensor in signature.inputs.items()
    }
    print("ANSWER", json.dumps({"answers": answers, "inputs": shapes,
        "method": signature.method_name}))
"""


def ask(version: Path, features: dict[str, Any]) -> dict[str, Any]:
    """What a published version answers in a process that knows nothing of us."""
    lists = {name: np.asarray(value).tolist() for name, value in features.items()}
    output = run(["python", "-c", ASK, str(version), json.dumps(lists)])
    line = next(line for line in output.splitlines() if line.startswith("ANSWER "))
    return json.loads(line.removeprefix("ANSWER "))  # type: ignore[no-any-return]


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


def two_in_two_out() -> keras.Model:
    keras.utils.set_random_seed(2)
    left, right = keras.layers.Input((4,), name="left"), keras.layers.Input((2,), name="right")
    both = keras.layers.Concatenate()([left, right])
    outputs = {"kind": keras.layers.Dense(3)(both), "size": keras.layers.Dense(1)(both)}
    return keras.Model({"left": left, "right": right}, outputs)


def scaled(features: tf.Tensor, training: bool, seed: tf.Tensor) -> tf.Tensor:
    noise = tf.random.stateless_uniform([4], seed) if training else 0.0
    return tf.cast(features, tf.float32) / 255 + noise


def test_versions_are_numbered_on(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "model"
    paths = [tfdp.export(dense(), folder) for _ in range(2)]
    assert paths == [folder / "1", folder / "2"]
    (folder / "41").mkdir()
    (folder / "notes").mkdir()
    assert tfdp.export(dense(), str(folder)) == folder / "42"
    assert versions(folder) == [1, 2, 41, 42]
    assert not list(folder.glob(".*")), "hidden folders are gone"
    assert versions(tmp_path / "nowhere") == []


def test_a_version_answers_raw_features_in_another_process(tmp_path: Path) -> None:
    source = tfdp.from_arrays(ROWS, np.zeros(12))
    version = tfdp.export(dense(), tmp_path, preprocess=scaled, features=source)
    expected = dense().predict(ROWS / np.float32(255), verbose=0)
    said = ask(version, {"features": ROWS})
    np.testing.assert_allclose(said["answers"]["outputs"], expected, rtol=1e-5)
    assert said["answers"].keys() == {"outputs"}
    assert said["inputs"] == {"features": [-1, 4]}
    assert said["method"] == "tensorflow/serving/predict"


def test_inputs_and_outputs_have_their_names(tmp_path: Path) -> None:
    model = two_in_two_out()
    version = tfdp.export(model, tmp_path)
    features = {"left": np.ones((2, 4), np.float32), "right": np.zeros((2, 2), np.float32)}
    said = ask(version, features)
    assert said["inputs"] == {"left": [-1, 4], "right": [-1, 2]}
    for name, value in model.predict(features, verbose=0).items():
        np.testing.assert_allclose(said["answers"][name], value, rtol=1e-5)


def test_outputs_of_a_list_are_numbered(tmp_path: Path) -> None:
    inputs = keras.layers.Input((2,))
    model = keras.Model(inputs, [inputs * 2, inputs * 3])
    version = tfdp.export(model, tmp_path)
    outputs = tf.saved_model.load(str(version)).signatures["serving_default"].structured_outputs
    assert set(outputs) == {"output_0", "output_1"}


def test_a_model_on_several_replicas_is_exported(strategies: Any, tmp_path: Path) -> None:
    with strategies(2).scope():
        model = keras.Sequential([keras.layers.Input((4,)), keras.layers.Dense(3)])
        model.compile("sgd", "mse")
    rows = ROWS.astype(np.float32)
    tfdp.fit(model, rows, np.zeros((12, 3)), verbose=0)
    version = tfdp.export(model, tmp_path, features=tfdp.from_arrays(rows))
    served = tf.saved_model.load(str(version)).signatures["serving_default"]
    kernel, bias = model.get_weights()
    answers = served(features=tf.constant(rows))["outputs"]
    np.testing.assert_allclose(answers, rows @ kernel + bias, rtol=1e-4)


@pytest.mark.parametrize("name", ["a b", "a/b", "1st", "", "a-b"])
def test_features_that_cannot_be_named_are_refused(name: str, tmp_path: Path) -> None:
    features = {name: tf.TensorSpec([4], tf.float32)}
    with pytest.raises(tfdp.BadInput, match=f"feature '{name}' can't be an input"):
        tfdp.export(dense(), tmp_path / "model", features=features)
    assert versions(tmp_path / "model") == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"preprocess": scaled}, "give features="),
        ({"features": (tf.TensorSpec([4]), tf.TensorSpec([4]))}, "use a dict"),
    ],
)
def test_features_that_cannot_be_told_are_asked_for(
    arguments: Any, said: str, tmp_path: Path
) -> None:
    with pytest.raises(tfdp.BadInput, match=said):
        tfdp.export(dense(), tmp_path, **arguments)


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


def test_an_export_that_fails_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, data: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(exporting, "write_durably", full)
    with pytest.raises(OSError, match="No space left"):
        tfdp.export(dense(), tmp_path)
    assert not list(tmp_path.iterdir())


def test_publishers_at_the_same_time_get_numbers_of_their_own(tmp_path: Path) -> None:
    hidden = [tmp_path / f".unpublished-{i}" for i in range(40)]
    for i, folder in enumerate(hidden):
        folder.mkdir()
        (folder / "who").write_text(str(i))
    start = threading.Barrier(4)
    paths: list[Path] = []

    def publish(mine: list[Path]) -> None:
        start.wait()
        for folder in mine:
            paths.append(exporting._publish(folder, tmp_path))

    threads = [threading.Thread(target=publish, args=(hidden[i::4],)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert versions(tmp_path) == sorted(int(path.name) for path in paths) == list(range(1, 41))
    assert {(path / "who").read_text() for path in paths} == {str(i) for i in range(40)}


def test_where_a_version_came_from_is_found_again(tmp_path: Path) -> None:
    assert published(tmp_path / "nowhere", {"run": "a"}) is None
    for number, about in enumerate(({"run": "a", "step": 1}, {"run": "a", "step": 2}, None), 1):
        (tmp_path / str(number)).mkdir()
        if about is not None:
            (tmp_path / str(number) / "tfdp.json").write_text(json.dumps(about | {"more": 0}))
    (tmp_path / "9").mkdir()
    (tmp_path / "9" / "tfdp.json").write_text("{ half")
    assert published(tmp_path, {"run": "a"}) == tmp_path / "2"
    assert published(tmp_path, {"run": "a", "step": 1}) == tmp_path / "1"
    assert published(tmp_path, {"run": "b"}) is None


def test_a_version_says_what_it_was_told_to(tmp_path: Path) -> None:
    version = tfdp.export(dense(), tmp_path, about={"run": "a", "step": 3})
    assert json.loads((version / "tfdp.json").read_text()) == {"run": "a", "step": 3}
    assert published(tmp_path, {"run": "a"}) == version
