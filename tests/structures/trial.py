"""One way of training, plain Keras's or tfdp's, and what came of it."""

from __future__ import annotations

import contextlib
import inspect
import re
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

import tfdp


class Forgetting(keras.callbacks.Callback):
    """Drops what was drawn before training, where tfdp tries a step on a few examples."""

    def __init__(self, draws: list[np.ndarray]) -> None:
        super().__init__()
        self._draws = draws

    def on_train_begin(self, logs: dict[str, float] | None = None) -> None:
        self._draws.clear()


class Trial:
    """Trains by ``Model.fit``, or by ``tfdp.fit`` under a strategy, and keeps all numbers.

    Args:
        strategy: of tfdp's workers; None for plain Keras.
    """

    def __init__(self, strategy: tf.distribute.Strategy | None) -> None:
        self._strategy = strategy
        self._models: list[keras.Model] = []
        self._kept: dict[str, Any] = {}
        self._draws: list[np.ndarray] = []

    def scope(self) -> contextlib.AbstractContextManager[Any]:
        """Where models are made and compiled."""
        return (self._strategy or tf.distribute.get_strategy()).scope()

    def fit(self, model: keras.Model, x: Any, y: Any = None, **options: Any) -> Any:
        """Trains in the data's order; keeps the history, and in the end the weights."""
        if not any(model is each for each in self._models):
            self._models.append(model)
        options = {"verbose": 0, **options}
        if not isinstance(x, (tf.data.Dataset, keras.utils.PyDataset, Iterator)):
            options.setdefault("shuffle", False)
        if y is not None:
            options["y"] = y
        options["callbacks"] = [*options.get("callbacks", ()), Forgetting(self._draws)]
        if self._strategy is None:
            history = model.fit(x, **options)
        else:
            history = tfdp.fit(model, x, **options)
        self.keep("history", history.history)
        return history

    def evaluate(self, model: keras.Model, *data: Any, **options: Any) -> Any:
        """Keeps the scores."""
        if self._strategy is None:
            scores = model.evaluate(*data, **options, verbose=0, return_dict=True)
        else:
            has_word = "return_dict" in inspect.signature(tfdp.evaluate).parameters
            dictionary = {"return_dict": True} if has_word else {}
            scores = tfdp.evaluate(model, *data, **options, **dictionary)
        self.keep("evaluate", scores)

    def predict(self, model: keras.Model, x: Any, **options: Any) -> Any:
        """Keeps the rows."""
        if self._strategy is None:
            rows = model.predict(x, **options, verbose=0)
        else:
            rows = tfdp.predict(model, x, **options)
        self.keep("predict", rows)

    def keep(self, name: str, value: Any) -> None:
        """Keeps numbers, or a structure of them, to be compared."""
        if isinstance(value, dict):
            for key, each in value.items():
                self.keep(f"{name}/{key}", each)
        elif isinstance(value, (list, tuple)) and any(np.ndim(each) for each in value):
            for i, each in enumerate(value):
                self.keep(f"{name}/{i}", each)
        else:
            count = sum(key.partition("#")[0] == name for key in self._kept)
            self._kept[f"{name}#{count}" if count else name] = np.asarray(value, np.float64)

    def note_draw(self, draw: tf.Tensor) -> None:
        """Notes numbers that a model has drawn, in the graph that is traced."""
        tf.numpy_function(lambda value: self._draws.append(np.array(value)), [draw], [])

    def results(self) -> dict[str, np.ndarray]:
        """All that was kept, with the weights and optimizers of every model that was trained."""
        for model in self._models:
            for i, weight in enumerate(model.weights):
                self.keep(f"weights/{i:02d} {_plain(weight.name)}", weight.numpy())
            for optimizer in optimizers_of(model):
                for i, variable in enumerate(optimizer.variables):
                    self.keep(f"optimizer/{i:02d} {_plain(variable.name)}", variable.numpy())
        draws = {f"draws/{i}": np.asarray(draw, np.float64) for i, draw in enumerate(self._draws)}
        return self._kept | draws


def _plain(name: str) -> str:
    """A variable's name without the numbers that Keras counts names by."""
    return re.sub(r"_\d+", "", name)


def optimizers_of(model: keras.Model) -> list[keras.optimizers.Optimizer]:
    """The optimizers of a model: the compiled one, and what its attributes hold."""
    found: list[keras.optimizers.Optimizer] = []
    for held in [model.optimizer, *vars(model).values()]:
        several = list(held.values()) if isinstance(held, dict) else held
        for each in several if isinstance(several, (list, tuple)) else [several]:
            is_optimizer = isinstance(each, keras.optimizers.Optimizer)
            if is_optimizer and not any(each is other for other in found):
                found.append(each)
    return found
