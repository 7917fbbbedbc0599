"""What a model's own step returns: the logs that callbacks and History see."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

import keras
import tensorflow as tf

from tfdp.step import metrics
from tfdp.step.building import flat, has_own_logs, returned_numbers
from tfdp.step.rules import Rules
from tfdp.step.share import Share
from tfdp.whereabouts import ALL_REDUCE, marked


class StepLogs:
    """The logs of a step, over all replicas.

    Where the step returned a metric's result, the metric is read, over all replicas. Each other
    number is kept in a variable, which has a value for each replica, as a metric's state has.

    Args:
        model: a built and compiled model.
        step: ``"train_step"`` or ``"test_step"``.
        rules: how the replicas' numbers combine.
    """

    def __init__(self, model: keras.Model, step: str, rules: Rules) -> None:
        self._model = model
        self._rules = rules
        self._is_own = has_own_logs(model, step)
        self._numbers: dict[str, tf.Variable] = {}
        self._metrics: dict[str, tuple[keras.metrics.Metric, str]] = {}
        self._results = threading.local()  # MirroredStrategy traces each replica in a thread
        self._reader: Callable[[], Any] | None = None
        if self._is_own:
            with model.distribute_strategy.scope():
                self._numbers = {
                    name: tf.Variable(
                        tf.zeros((), dtype if dtype.is_floating else tf.float32),
                        trainable=False,
                        synchronization=tf.VariableSynchronization.ON_READ,
                        aggregation=tf.VariableAggregation.SUM,
                    )
                    for name, dtype in returned_numbers(model, step).items()
                }

    @contextlib.contextmanager
    def noted(self) -> Iterator[None]:
        """Inside the block, results of metrics are recognized in what the step returns."""
        if not self._is_own:
            yield
            return
        with metrics.results_noted(self._model, self._note):
            yield

    def keep(self, returned: Any, share: Share, *, is_first: bool) -> None:
        """Keeps what the step returned on this replica; call it in replica context.

        Args:
            returned: the step's result.
            share: the share of the global batch that it was computed on.
            is_first: whether it is the first micro-batch of an update.
        """
        if not self._is_own:
            return
        known = getattr(self._results, "by_id", {})
        for name, value in flat(returned).items():
            if id(value) in known:
                self._metrics[name] = known[id(value)][:2]
            elif name in self._numbers and getattr(value, "shape", ()) == ():
                number = self._numbers[name]
                how = self._rules.logs.get(name, "mean")
                own = share.contribution(tf.cast(value, number.dtype), how)
                (number.assign if is_first else number.assign_add)(own)
        self._results.by_id = {}

    @marked(ALL_REDUCE)
    def read(self) -> dict[str, Any]:
        """Returns the logs by name, over all replicas; a collective."""
        numbers = {name: each for name, each in self._numbers.items() if name not in self._metrics}
        if not self._is_own or {*numbers, *self._metrics} == {*metrics.names(self._model)}:
            return metrics.read_metrics(self._model)
        if self._reader is None:

            @tf.function
            def read() -> dict[str, Any]:
                found = {name: each.read_value() for name, each in numbers.items()}
                for name, (metric, key) in self._metrics.items():
                    result = metric.result()
                    found[name] = result[key] if key else result
                return found

            self._reader = read
        values = self._reader()
        return {name: values[name].numpy().tolist() for name in sorted(values)}

    def _note(self, metric: keras.metrics.Metric, result: Any) -> None:
        if not hasattr(self._results, "by_id"):
            self._results.by_id = {}
        for key, leaf in (result if isinstance(result, dict) else {"": result}).items():
            # The tensor is kept, or another one might get its id.
            self._results.by_id[id(leaf)] = (metric, key, leaf)
