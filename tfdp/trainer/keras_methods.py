"""``model.predict``, ``evaluate`` and ``fit`` of models that several workers train.

In Keras 3, these methods call all workers together, and fail or wait without end there. A callback
calls them nevertheless, on all workers or on the chief alone. Here a method that only computes does
so on this worker alone, as in one process: all workers have the same weights. A method that trains
raises an error.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import keras
import tensorflow as tf

from tfdp.errors import BadInput
from tfdp.step import keras_private, metrics
from tfdp.workers.collectives import workers_of

_REMEDIES = {
    "fit": "call tfdp.fit(model, …), which takes the arguments of model.fit, on all workers",
    "train_on_batch": (
        "give your loop's batches to tfdp.fit(model, dataset) as a tf.data.Dataset, on all "
        "workers, and do in a callback what the loop does between them"
    ),
}


@cache
def adapt() -> None:
    """Adapts ``keras.Model`` and variables to strategies of several workers; once per process."""
    keras_private.let_distributed_variables_be_numbers()
    for name in ("predict", "predict_on_batch", "evaluate", "test_on_batch"):
        setattr(keras.Model, name, _on_this_worker(getattr(keras.Model, name)))
    for name, remedy in _REMEDIES.items():
        setattr(keras.Model, name, _refused(getattr(keras.Model, name), remedy))


def _on_this_worker(method: Callable[..., Any]) -> Callable[..., Any]:
    is_test = method.__name__ in ("evaluate", "test_on_batch")

    @functools.wraps(method)
    def wrapper(self: keras.Model, *args: Any, **options: Any) -> Any:
        workers = workers_of(self.distribute_strategy)
        # One process with several replicas predicts on all of them, but can't evaluate there: Keras
        # adds up what the first batch gives to each of them, of different sizes.
        if workers.count == 1 and not (is_test and workers.replicas > 1):
            return method(self, *args, **options)
        if not self.built:
            raise BadInput(
                f"model.{method.__name__} of a model without weights: workers have to make them "
                "together, so begin it with a keras.Input, or build it in the strategy's scope"
            )

        def compute() -> Any:
            with keras_private.on_this_worker(self):
                result = method(self, *args, **options)
                if is_test:
                    metrics.note_evaluation(self)
                return result

        if not tf.distribute.has_strategy():
            return compute()
        with ThreadPoolExecutor(1) as outside:  # of the scope: a scope holds for its thread
            return outside.submit(compute).result()

    return wrapper


def _refused(method: Callable[..., Any], remedy: str) -> Callable[..., Any]:
    @functools.wraps(method)
    def wrapper(self: keras.Model, *args: Any, **options: Any) -> Any:
        workers = workers_of(self.distribute_strategy)
        if workers.count > 1:
            raise BadInput(
                f"model.{method.__name__} of Keras 3 can't train on {workers.count} workers: "
                + remedy
            )
        return method(self, *args, **options)

    return wrapper
