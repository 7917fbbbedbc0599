from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfdp
from tests.tfdp.publishing.test_features import Sentences
from tests.tfdp.servables import loaded, warmup_requests
from tfdp.publishing.features import find_features
from tfdp.publishing.signatures import make_signatures

ROWS = np.random.default_rng(3).normal(size=(6, 4)).astype(np.float32)
LOGITS = {"from_logits": True}

pytestmark = pytest.mark.usefixtures("reloaded_here")


def model_of(units: int, loss: Any, activation: str | None = None) -> keras.Model:
    keras.utils.set_random_seed(4)
    layers = [keras.layers.Input((4,), name="x"), keras.layers.Dense(units, activation)]
    model = keras.Sequential(layers)
    if loss is not None:
        model.compile("sgd", loss)
    return model


def example(**features: Any) -> bytes:
    """A serialized tf.Example, written by hand."""
    kinds = {"i": "int64_list", "u": "int64_list", "b": "int64_list", "f": "float_list"}
    made = tf.train.Example()
    for name, value in features.items():
        flat = np.asarray(value).reshape(-1)
        kind = kinds.get(flat.dtype.kind, "bytes_list")
        values = flat.tolist()
        if kind == "bytes_list":
            values = [text.encode() for text in values]
        getattr(made.features.feature[name], kind).value.extend(values)
    return made.SerializeToString()


def functions_of(model: keras.Model, names: list[str] | None = None) -> dict[str, Any]:
    return make_signatures(model, None, find_features(model, None, None), names)


def softmax(values: np.ndarray) -> np.ndarray:
    powers = np.exp(values - values.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def sigmoid(values: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-values))


def pair(values: np.ndarray) -> np.ndarray:
    return np.concatenate([1 - values, values], axis=1)


@pytest.mark.parametrize(
    ("units", "loss", "activation", "scores"),
    [
        (3, keras.losses.SparseCategoricalCrossentropy(**LOGITS), None, softmax),
        (3, keras.losses.CategoricalCrossentropy(**LOGITS), None, softmax),
        (3, "sparse_categorical_crossentropy", "softmax", np.asarray),
        (3, keras.losses.CategoricalFocalCrossentropy(), "softmax", np.asarray),
        (3, {"dense": "categorical_crossentropy"}, "softmax", np.asarray),
        (3, keras.losses.BinaryCrossentropy(**LOGITS), None, sigmoid),
        (1, keras.losses.BinaryCrossentropy(**LOGITS), None, lambda out: pair(sigmoid(out))),
        (1, "binary_crossentropy", "sigmoid", pair),
    ],
)
def test_models_compiled_with_a_crossentropy_classify(
    units: int, loss: Any, activation: str | None, scores: Any
) -> None:
    model = model_of(units, None, activation)
    if isinstance(loss, dict):
        loss = {model.layers[-1].name: loss["dense"]}
    model.compile("sgd", loss)
    functions = functions_of(model)
    assert functions.keys() == {"serving_default", "classify"}
    answer = functions["classify"](tf.constant([example(features=row) for row in ROWS]))
    expected = scores(model.predict(ROWS, verbose=0))
    np.testing.assert_allclose(answer["scores"], expected, rtol=1e-5)
    names = [str(place).encode() for place in range(expected.shape[1])]
    np.testing.assert_array_equal(answer["classes"], [names] * len(ROWS))


@pytest.mark.parametrize("loss", ["mse", keras.losses.Huber(), None])
def test_models_with_one_output_column_regress(loss: Any) -> None:
    model = model_of(1, loss)
    functions = functions_of(model)
    assert functions.keys() == {"serving_default", "regress"}
    answer = functions["regress"](tf.constant([example(features=row) for row in ROWS]))
    np.testing.assert_allclose(answer["outputs"], model.predict(ROWS, verbose=0), rtol=1e-5)


def test_the_single_output_of_a_dict_has_its_name_and_regresses() -> None:
    features = keras.layers.Input((4,))
    model = keras.Model(features, {"price": keras.layers.Dense(1)(features)})
    functions = functions_of(model)
    expected = model.predict(ROWS, verbose=0)["price"]
    np.testing.assert_allclose(
        functions["serving_default"]({"features": tf.constant(ROWS)})["price"], expected, rtol=1e-5
    )
    answer = functions["regress"](tf.constant([example(features=row) for row in ROWS]))
    np.testing.assert_allclose(answer["outputs"], expected, rtol=1e-5)


def test_other_models_have_neither_signature() -> None:
    two = keras.layers.Input((4,))
    of_two = keras.Model(two, {"a": keras.layers.Dense(1)(two), "b": keras.layers.Dense(1)(two)})
    image = keras.Sequential([keras.layers.Input((4, 4, 1)), keras.layers.Conv2D(3, 1)])
    image.compile("sgd", "sparse_categorical_crossentropy")
    of_any_length = keras.Sequential(
        [keras.layers.Input((None, 4)), keras.layers.GlobalMaxPooling1D(), keras.layers.Dense(1)]
    )
    for model in (model_of(3, "mse"), of_two, image, of_any_length):
        assert functions_of(model).keys() == {"serving_default"}


def test_classes_have_the_given_names() -> None:
    classify = functions_of(model_of(3, None), ["cat", "dog", "é"])["classify"]
    answer = classify(tf.constant([example(features=ROWS[0])]))
    assert answer["classes"].numpy().tolist() == [[b"cat", b"dog", "é".encode()]]
    with pytest.raises(tfdp.BadInput, match=r"2 class_names, .*\(None, 3\): 3 are needed"):
        functions_of(model_of(3, None), ["cat", "dog"])
    two = keras.layers.Input((4,))
    with pytest.raises(tfdp.BadInput, match="classes are the columns of a single output"):
        functions_of(keras.Model(two, [two, two]), ["cat", "dog"])


def counts(features: Any, training: bool, seed: tf.Tensor) -> tf.Tensor:
    """Returns the number of words, the number of words "a", and the other features."""
    words = features["words"]
    numbers = [
        tf.cast(tf.size(words), tf.float32),
        tf.reduce_sum(tf.cast(words == "a", tf.float32)),
        tf.cast(features["size"][0, 0], tf.float32),
        tf.cast(features["late"], tf.float32),
    ]
    return tf.stack(numbers)


COUNTED = np.array([[2, 1, 0, 0], [0, 0, 1, 0], [4, 2, 2, 1], [1, 0, 3, 1]], np.float32)


def test_strings_and_ragged_features_are_served(tmp_path: Path) -> None:
    model = model_of(1, "mse")
    version = tfdp.export(
        model, tmp_path / "m", preprocess=counts, features=Sentences(), warmup_batch_sizes=[4]
    )
    expected = model.predict(COUNTED, verbose=0)
    words = [row + ["?"] * (5 - len(row)) for row in Sentences.WORDS.to_list()]  # padding
    with loaded(version) as servable:
        sent = {
            "words": np.array(words, object),
            "words_length": np.array([2, 0, 4, 1]),
            "size": np.array([0, 1, 2, 3], np.uint8).reshape(4, 1, 1),
            "late": np.array([False, False, True, True]),
        }
        np.testing.assert_allclose(servable.ask(**sent)["outputs"], expected, rtol=1e-5)
        assert servable.inputs()["words"] == (tf.string.as_datatype_enum, [-1, -1])
        examples = [
            example(**{"words": row, "size": i, "late": int(i > 1)})
            if row
            else example(**{"size": i, "late": int(i > 1)})
            for i, row in enumerate(Sentences.WORDS.numpy().astype(object))
            for row in [[word.decode() for word in row]]
        ]
        answer = servable.ask("regress", inputs=examples)
        np.testing.assert_allclose(answer["outputs"], expected, rtol=1e-5)
        (request,) = warmup_requests(version)
        inputs = {name: tf.make_ndarray(value) for name, value in request.inputs.items()}
        np.testing.assert_allclose(servable.ask(**inputs)["outputs"], expected, rtol=1e-5)


def test_signatures_have_the_methods_and_shapes_that_tf_serving_requires(tmp_path: Path) -> None:
    for name, model in (
        ("classify", model_of(3, "categorical_crossentropy", "softmax")),
        ("regress", model_of(1, "mse")),
    ):
        version = tfdp.export(model, tmp_path / name, warmup_batch_sizes=[])
        with loaded(version) as servable:
            signature = servable.signatures[name]
            assert signature.method_name == f"tensorflow/serving/{name}"
            assert servable.inputs(name) == {"inputs": (tf.string.as_datatype_enum, [-1])}
            outputs = {
                key: (tf.as_dtype(info.dtype).name, [dim.size for dim in info.tensor_shape.dim])
                for key, info in signature.outputs.items()
            }
        assert (
            outputs
            == {
                "classify": {"classes": ("string", [-1, 3]), "scores": ("float32", [-1, 3])},
                "regress": {"outputs": ("float32", [-1, 1])},
            }[name]
        )
        served = tf.saved_model.load(str(tmp_path / name / "1")).signatures
        assert set(served) == {"serving_default", name}
