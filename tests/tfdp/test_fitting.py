"""``tfdp.fit`` in one process: what it shares with ``Model.fit`` beside the arithmetic."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

import tfdp
from tests.exactness.registry import CLASSES, WEIGHTS, arrays, classifier


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
