"""``tfdp.fit`` in one process: what it shares with ``Model.fit`` beside the arithmetic."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfdp
from tests.exactness.registry import CLASSES, ROWS, WEIGHTS, arrays, classifier


def test_class_weights_multiply_sample_weights() -> None:
    weights_of_class = np.array([3.0, 0.25, 1.5])
    results = []
    for weights, class_weight in (
        (WEIGHTS, dict(enumerate(weights_of_class))),
        (WEIGHTS * weights_of_class[CLASSES], None),
    ):
        keras.utils.set_random_seed(5)
        model = classifier()
        arguments = arrays(sample_weight=weights, class_weight=class_weight)
        history = tfdp.fit(model, **arguments, shuffle=False, verbose=0).history
        results.append(history["loss"])
    np.testing.assert_allclose(*results, rtol=1e-6)


def test_class_weight_is_for_one_output() -> None:
    inputs = keras.layers.Input((5,))
    outputs = {name: keras.layers.Dense(3, name=name)(inputs) for name in ("a", "b")}
    model = keras.Model(inputs, outputs)
    model.compile("sgd", {name: "sparse_categorical_crossentropy" for name in outputs})
    labels = dict.fromkeys(outputs, CLASSES)
    with pytest.raises(tfdp.BadInput, match="class_weight is for a single output"):
        tfdp.fit(model, ROWS, labels, class_weight={0: 2.0}, verbose=0)
    tfdp.fit(model, ROWS, labels, class_weight={}, verbose=0)


def test_data_without_an_end_is_evaluated_for_as_many_steps_as_said() -> None:
    model = classifier()
    data = tf.data.Dataset.from_tensor_slices((ROWS, CLASSES)).batch(10)
    with pytest.raises(tfdp.BadInput, match="never ends: give steps"):
        tfdp.evaluate(model, data.repeat())
    with pytest.raises(tfdp.BadInput, match="never ends: give steps"):
        tfdp.predict(model, data.repeat())
    expected = model.evaluate(ROWS[:20], CLASSES[:20], verbose=0, return_dict=True)
    for dataset in (data, data.repeat()):
        scores = tfdp.evaluate(model, dataset, steps=2)
        assert scores == pytest.approx(expected, rel=1e-5)
        assert len(tfdp.predict(model, dataset, steps=2)) == 20


def test_a_model_that_is_compiled_anew_is_evaluated_anew() -> None:
    class OwnMetrics(keras.Sequential):
        @property
        def metrics(self) -> list[Any]:
            return [self._loss_tracker]

    model = OwnMetrics([keras.layers.Input((1,)), keras.layers.Dense(1, "linear", use_bias=False)])
    model.set_weights([np.zeros((1, 1), np.float32)])
    rows, threes = np.ones((4, 1)), np.full((4, 1), 3.0)
    model.compile("sgd", "mse")
    assert tfdp.evaluate(model, rows, threes)["loss"] == 9.0
    model.compile("sgd", "mae")
    assert tfdp.evaluate(model, rows, threes)["loss"] == 3.0
