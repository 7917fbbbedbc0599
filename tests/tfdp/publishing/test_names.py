"""The names of a version's inputs and outputs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfdp
from tests.tfdp.returning import Returning
from tests.tfdp.servables import loaded
from tfdp.publishing import exporting

pytestmark = pytest.mark.usefixtures("reloaded_here")


def two_in_two_out() -> keras.Model:
    keras.utils.set_random_seed(2)
    left, right = keras.layers.Input((4,), name="left"), keras.layers.Input((2,), name="right")
    both = keras.layers.Concatenate()([left, right])
    outputs = {"kind": keras.layers.Dense(3)(both), "size": keras.layers.Dense(1)(both)}
    return keras.Model({"left": left, "right": right}, outputs)


def test_inputs_and_outputs_have_their_names(tmp_path: Path) -> None:
    model = two_in_two_out()
    version = tfdp.export(model, tmp_path)
    features = {"left": np.ones((2, 4), np.float32), "right": np.zeros((2, 2), np.float32)}
    with loaded(version) as servable:
        answers = servable.ask(**features)
        assert set(servable.signatures) <= {"serving_default", "__saved_model_init_op"}
    for name, value in model.predict(features, verbose=0).items():
        np.testing.assert_allclose(answers[name], value, rtol=1e-5)


def test_outputs_of_a_list_are_numbered(tmp_path: Path) -> None:
    inputs = keras.layers.Input((2,))
    model = keras.Model(inputs, [inputs * 2, inputs * 3])
    version = tfdp.export(model, tmp_path)
    outputs = tf.saved_model.load(str(version)).signatures["serving_default"].structured_outputs
    assert set(outputs) == {"output_0", "output_1"}


def test_nested_outputs_are_named_by_keys_and_places(tmp_path: Path) -> None:
    nested = Returning(lambda x: {"a": [x, (x + 1, {"b": x + 2})], "c": {0: {"d e": x + 3}}})
    version = tfdp.export(nested, tmp_path, features=tf.TensorSpec([1]))
    with loaded(version) as servable:
        answer = servable.ask(features=np.zeros((1, 1), np.float32))
    assert {name: value.item() for name, value in answer.items()} == {
        **{"a_0": 0, "a_1_0": 1, "a_1_1_b": 2, "c_0_d e": 3}
    }
    listed = Returning(lambda x: ([x], x))
    specs = exporting.make_signatures(
        listed, None, exporting.find_features(listed, tf.TensorSpec([1]), None), None
    )["serving_default"]
    assert specs.get_concrete_function().structured_outputs.keys() == {"output_0_0", "output_1"}


class Prices(NamedTuple):
    """Outputs by field."""

    low: Any
    high: Any


@dataclasses.dataclass
class Range:
    """Outputs by field."""

    low: Any
    high: Any


def listed(*names: str | None) -> keras.Model:
    """Returns a model with a list of outputs, of layers with these names."""
    inputs = keras.Input((1,))
    return keras.Model(inputs, [keras.layers.Dense(1, name=name)(inputs) for name in names])


def repeated(name: str) -> keras.Model:
    inputs = keras.Input((1,))
    output = keras.layers.Dense(1, name=name)(inputs)
    return keras.Model(inputs, [output, output])


@pytest.mark.parametrize(
    ("model", "names"),
    [
        (lambda: listed("price", "kind"), ["price", "kind"]),
        (lambda: listed("price", None, "batch_norm_2"), ["price", "output_1", "batch_norm_2"]),
        (lambda: listed("dense_7", "dense"), ["output_0", "output_1"]),  # like Keras's own names
        (lambda: repeated("price"), ["output_0", "output_1"]),
        (lambda: Returning(lambda x: Prices(x, x + 1)), ["low", "high"]),
        (lambda: Returning(lambda x: Range(x, {"a/b": x})), ["low", "high_a/b"]),
        (
            lambda: Returning(lambda x: [Prices(x, x), x]),
            ["output_0_low", "output_0_high", "output_1"],
        ),
        (lambda: Returning(lambda x: {"my output": x, "größe": x, "a/b": x}), None),
        (lambda: Returning(lambda x: {"only": x}), ["only"]),
    ],
)
def test_outputs_have_the_names_that_users_gave(
    model: Callable[[], keras.Model], names: list[str] | None, tmp_path: Path
) -> None:
    version = tfdp.export(model(), tmp_path, features=tf.TensorSpec([1]), warmup_batch_sizes=[])
    with loaded(version) as servable:
        outputs = servable.signatures["serving_default"].outputs
    assert set(outputs) == set(names or ["my output", "größe", "a/b"])


def test_inputs_have_the_names_that_users_gave(tmp_path: Path) -> None:
    left, right = keras.Input((1,)), keras.Input((1,))
    total = keras.layers.Add()([left, right])
    version = tfdp.export(keras.Model({"a": left, "b": right}, total), tmp_path)
    with loaded(version) as servable:
        assert servable.inputs().keys() == {"a", "b"}
    with pytest.raises(tfdp.errors.BadInput, match="has no name"):
        tfdp.export(keras.Model([left, right], total), tmp_path)
