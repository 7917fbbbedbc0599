"""A model that returns what a function makes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf


class Returning(keras.Model):
    """A model whose outputs ``make`` makes of its inputs."""

    def __init__(self, make: Callable[[tf.Tensor], Any]) -> None:
        super().__init__()
        self.make = make

    def call(self, inputs: tf.Tensor) -> Any:
        return self.make(inputs)
