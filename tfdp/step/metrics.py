"""A model's metrics: each replica has states of its own, which reading a metric adds up."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfdp.step.keras_private import replaced
from tfdp.step.per_compile import once_per_compile
from tfdp.step.share import Share

_EVALUATED = "tfdp.evaluated"  # an attribute of the model
LocalStates = list[np.ndarray]  # for each metric variable, [local replicas, *shape]


def metric_variables(model: keras.Model) -> list[keras.Variable]:
    """Returns the variables of all metrics of a model."""
    return [variable for metric in model.metrics for variable in metric.variables]


def read_metrics(model: keras.Model) -> dict[str, Any]:
    """Returns the model's metrics over all replicas, by name; a collective.

    A metric that gives several results contributes all of them, as in Keras.
    """
    return {name: each.numpy().tolist() for name, each in _flat(_metrics_reader(model)()).items()}


def names(model: keras.Model) -> list[str]:
    """Returns the names that ``read_metrics`` gives, without reading."""
    return list(_flat(_metrics_reader(model).get_concrete_function().structured_outputs))


def local_metric_states(model: keras.Model) -> LocalStates:
    """Returns the metric states of each replica of this worker."""
    strategy = model.distribute_strategy
    return [
        np.stack([value.numpy() for value in strategy.experimental_local_results(state)])
        for state in _local_states_reader(model)()
    ]


def set_local_metric_states(model: keras.Model, states: LocalStates) -> None:
    """Gives each replica of this worker its own metric states back."""
    if states:
        _local_states_writer(model)([tf.constant(state) for state in states])


def note_evaluation(model: keras.Model) -> None:
    """Notes the states of metrics after an evaluation on this worker alone."""
    vars(model)[_EVALUATED] = [variable.numpy() for variable in metric_variables(model)]


def forget_evaluation(model: keras.Model) -> None:
    """Drops what ``note_evaluation`` has noted."""
    vars(model).pop(_EVALUATED, None)


def has_evaluation(model: keras.Model) -> bool:
    """Returns whether an evaluation is noted."""
    return _EVALUATED in vars(model)


def go_on_from_evaluation(model: keras.Model, is_own: bool) -> None:
    """Lets the metrics of training go on from an evaluation, as in Keras, which resets them first.

    Args:
        model: the model.
        is_own: whether the evaluation that counts is that of this worker. Every evaluation is one
            of all data, so one worker's is enough.
    """
    evaluated = vars(model).pop(_EVALUATED, [])
    model.reset_metrics()
    if is_own:
        of_replicas = local_metric_states(model)
        for states, of_first in zip(of_replicas, evaluated, strict=True):
            states[0] = of_first
        set_local_metric_states(model, of_replicas)


@contextlib.contextmanager
def restored_if_empty(model: keras.Model, share: Share) -> Iterator[None]:
    """Restores the metrics after a step on a share that turns out to be empty."""
    states = [each.value for each in (metric_variables(model) if share.may_be_empty else ())]
    before = [tf.identity(state) for state in states]
    yield
    for state, old in zip(states, before, strict=True):
        state.assign(tf.where(share.examples > 0, state, old))


@contextlib.contextmanager
def results_noted(
    model: keras.Model, note: Callable[[keras.metrics.Metric, Any], None]
) -> Iterator[None]:
    """Inside the block, ``note`` is called with the model's metrics and the results that they give.

    Args:
        model: the model.
        note: a function of a metric and its result.
    """
    kinds: set[Any] = {
        kind
        for metric in model.metrics
        for each in (metric, *getattr(metric, "metrics", ()))
        for kind in type(each).__mro__
        if "result" in vars(kind) and issubclass(kind, keras.metrics.Metric)
    }

    def noting(result: Callable[[Any], Any]) -> Callable[[Any], Any]:
        def wrapper(metric: keras.metrics.Metric) -> Any:
            value = result(metric)
            note(metric, value)
            return value

        return wrapper

    with contextlib.ExitStack() as stack:
        for kind in kinds:
            stack.enter_context(replaced(kind, "result", noting(kind.result)))
        yield


@once_per_compile
def _metrics_reader(model: keras.Model) -> Any:
    @tf.function
    def read() -> Any:
        return model.get_metrics_result()

    return read


@once_per_compile
def _local_states_reader(model: keras.Model) -> Callable[[], Any]:
    states = [variable.value for variable in metric_variables(model)]

    @tf.function(autograph=False)
    def read() -> Any:
        return model.distribute_strategy.run(lambda: [tf.identity(state) for state in states])

    return read  # type: ignore[no-any-return]


@once_per_compile
def _local_states_writer(model: keras.Model) -> Callable[[list[tf.Tensor]], None]:
    states = [variable.value for variable in metric_variables(model)]

    @tf.function(autograph=False)
    def write(values: list[tf.Tensor]) -> None:
        def on_replica() -> None:
            context = tf.distribute.get_replica_context()
            local_replica = context.replica_id_in_sync_group % values[0].shape[0]
            for state, value in zip(states, values, strict=True):
                state.assign(tf.gather(value, local_replica))

        model.distribute_strategy.run(on_replica)

    return write  # type: ignore[no-any-return]


def _flat(results: dict[str, Any]) -> dict[str, Any]:
    """Returns results by name; a metric with several has a dict of them, which Keras flattens."""
    flat: dict[str, Any] = {}
    for name, value in results.items():
        flat |= _flat(value) if isinstance(value, dict) else {name: value}
    return flat
