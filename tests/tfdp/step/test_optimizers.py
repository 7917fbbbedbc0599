from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras.optimizers import SGD, Adam, LossScaleOptimizer

from tfdp.step.optimizers import optimizers


class Trained(keras.Model):
    """A model with a ``train_step`` of its own, and with whatever attributes it is given."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__()
        for name, value in attributes.items():
            setattr(self, name, value)

    def train_step(self, data: Any) -> dict[str, Any]:
        return {}


class Part(keras.layers.Layer):
    def __init__(self, optimizer: Any) -> None:
        super().__init__()
        self.own_optimizer = optimizer


class Around(SGD):
    """An optimizer around another, whose variables it does not list."""

    def __init__(self, inner: Any) -> None:
        super().__init__()
        self.inner = inner


def compiled(optimizer: Any) -> keras.Model:
    model = keras.Sequential([keras.layers.Input((2,)), keras.layers.Dense(1)])
    model.compile(optimizer, "mse")
    return model


def test_all_optimizers_of_a_model_are_found_the_compiled_one_and_its_own_first() -> None:
    of_attribute, of_part, of_model, inner, outer = SGD(), SGD(), SGD(), SGD(), SGD()
    listed, in_tuple, in_dict, deep = SGD(), SGD(), SGD(), SGD()
    model = Trained(
        part=Part(of_part),
        parts=[{"a": Part({"b": [deep]})}],
        several=[listed, (in_tuple,), {"c": in_dict}],
        generator=compiled(of_model),
        first=of_attribute,
        again=[of_attribute, listed],
    )
    around = Around(inner)
    model.compile(around)
    model.last = outer
    found = optimizers(model)
    assert found[:3] == [around, of_attribute, outer]
    others = {id(each) for each in (inner, of_part, of_model, listed, in_tuple, in_dict, deep)}
    assert {id(each) for each in found[3:]} == others
    assert len(found) == 3 + len(others)
    assert optimizers(model) == found


def test_optimizers_of_others_that_list_their_variables_are_not_listed_again() -> None:
    inner = Adam()
    model = Trained(inner=inner)
    scaled = LossScaleOptimizer(inner)
    model.compile(scaled)
    assert optimizers(model) == [scaled]


def test_keras_own_train_step_does_not_use_the_optimizers_of_parts() -> None:
    part = compiled(SGD())
    model = keras.Sequential([keras.layers.Input((2,)), part])
    assert optimizers(model) == []
    model.compile("adam", "mse")
    assert optimizers(model) == [model.optimizer]
    model.build((None, 2))
    model.fit(np.ones((2, 2)), np.ones((2, 1)), verbose=0)
