"""What belongs to a model until it is compiled again."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import keras
import tensorflow as tf

from tfdp.step import keras_private

Made = TypeVar("Made")


def once_per_compile(make: Callable[[keras.Model], Made]) -> Callable[[keras.Model], Made]:
    """Caches what ``make`` returns for a model, until the model is compiled again.

    The cache is an attribute of the model, where Keras keeps its own functions too. So it lives as
    long as the model, and each function is traced once.
    """

    @functools.wraps(make)
    def cached(model: keras.Model) -> Made:
        if kept(model, make.__name__) is None:
            keep(model, make.__name__, make(model))
        return kept(model, make.__name__)  # type: ignore[no-any-return]

    return cached


def keep(model: keras.Model, name: str, value: Any) -> None:
    """Keeps something with a model, until the model is compiled again."""
    vars(model)[f"tfdp.{name}"] = (keras_private.compilation(model), value)


def kept(model: keras.Model, name: str) -> Any:
    """Returns what ``keep`` keeps under this name; None if there is nothing."""
    compilation, value = vars(model).get(f"tfdp.{name}", (None, None))
    return value if compilation is keras_private.compilation(model) else None


def function_of(
    model: keras.Model, steps: Callable[..., Any], **options: Any
) -> Callable[..., Any]:
    """Returns ``steps`` as a ``tf.function``, or as it is where ``run_eagerly`` is honoured."""
    if model.run_eagerly and model.distribute_strategy.num_replicas_in_sync == 1:
        return steps
    return tf.function(steps, **options)  # type: ignore[no-any-return]
