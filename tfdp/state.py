"""The state of a run as named arrays, and back: weights, optimizer, each replica's metrics."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfdp.errors import BadInput
from tfdp.steps import metric_states
from tfdp.team import Team

Rows = list[np.ndarray]  # of each metric variable, [local replicas, ...]


def weights_sha256(model: keras.Model) -> str:
    """The sha256 of all weights in ``model.weights`` order, as little-endian bytes."""
    digest = hashlib.sha256()
    for weight in model.weights:
        array = np.ascontiguousarray(weight.numpy())
        digest.update(array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes())
    return digest.hexdigest()


def capture(model: keras.Model, team: Team) -> dict[str, np.ndarray]:
    """Copies the state to host memory; every worker has to call it, the chief gets all of it.

    Random layers need no entry: what they draw is a function of the step.
    """
    arrays = {name: np.array(variable.numpy()) for name, variable in _variables(model).items()}
    for name, local in zip(_metric_names(model), metric_rows(model), strict=True):
        parts = team.gather_bytes(local.tobytes())
        rows = np.frombuffer(b"".join(parts), local.dtype)
        arrays[name] = rows.reshape(team.replicas, *local.shape[1:])
    return arrays


def restore(model: keras.Model, team: Team, arrays: Mapping[str, np.ndarray]) -> None:
    """Gives a built model the state that ``capture`` copied, on every worker.

    With another number of replicas, the first takes what all had counted: metric states are sums.

    Raises:
        BadInput: if the state is of another model; nothing is changed then.
    """
    variables = _variables(model)
    names = [*variables, *_metric_names(model)]
    if set(names) != set(arrays):
        missing, extra = sorted(set(names) - set(arrays)), sorted(set(arrays) - set(names))
        raise BadInput(
            "the checkpoint is of another model: "
            f"it lacks {missing[:5] or 'nothing'} and has {extra[:5] or 'nothing'} besides; "
            "use another --workdir, or the recipe that wrote it"
        )
    for name, variable in variables.items():
        if tuple(variable.shape) != arrays[name].shape:
            raise BadInput(
                f"the checkpoint is of another model: {name} has the shape {arrays[name].shape} "
                f"there and {tuple(variable.shape)} here; use another --workdir"
            )
    for name, variable in variables.items():
        variable.assign(arrays[name])
    first = team.index * team.local_replicas
    local = []
    for name in _metric_names(model):
        rows = arrays[name]
        if len(rows) != team.replicas:
            rows = np.concatenate(
                [rows.sum(axis=0, keepdims=True, dtype=rows.dtype)]
                + [np.zeros_like(rows[:1])] * (team.replicas - 1)
            )
        local.append(rows[first : first + team.local_replicas])
    set_metric_rows(model, local)


def metric_rows(model: keras.Model) -> Rows:
    """What each replica of this worker has counted so far."""
    strategy = model.distribute_strategy
    states = metric_states(model)

    @tf.function
    def read() -> Any:
        return strategy.run(lambda: [tf.identity(state) for state in states])

    return [
        np.stack([value.numpy() for value in strategy.experimental_local_results(state)])
        for state in read()
    ]


def set_metric_rows(model: keras.Model, rows: Rows) -> None:
    """Gives each replica of this worker its own counts back."""
    strategy = model.distribute_strategy
    states = metric_states(model)

    @tf.function
    def write(values: list[tf.Tensor]) -> None:
        def on_replica() -> None:
            context = tf.distribute.get_replica_context()
            place = context.replica_id_in_sync_group % values[0].shape[0]
            for state, value in zip(states, values, strict=True):
                state.assign(tf.gather(value, place))

        strategy.run(on_replica)

    if states:
        write([tf.constant(row) for row in rows])


def _variables(model: keras.Model) -> dict[str, keras.Variable]:
    groups = {"model": model.weights, "optimizer": getattr(model.optimizer, "variables", [])}
    return {
        f"{group}/{i:04d}/{variable.path}": variable
        for group, variables in groups.items()
        for i, variable in enumerate(variables)
    }


def _metric_names(model: keras.Model) -> list[str]:
    paths = [variable.path for metric in model.metrics for variable in metric.variables]
    return [f"metrics/{i:04d}/{path}" for i, path in enumerate(paths)]
