"""The state of a run as named arrays, and back: weights, optimizer, each replica's metrics."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfdp.errors import BadInput
from tfdp.steps import metric_states, until_recompiled
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
    rows = metric_rows(model)
    mine = b"".join(row.tobytes() for row in rows)  # of one size everywhere
    words = np.frombuffer(mine.ljust(-(-len(mine) // 4) * 4, b"\0"), np.int32)
    parts = team.gather(words) if len(words) else words  # one exchange for all of them
    values = _read_variables(model)()
    if not team.is_chief:
        return {}
    arrays = {
        _name(group, place, variable): np.asarray(value.numpy())
        for group, variables in _variables(model).items()
        for place, (variable, value) in enumerate(zip(variables, values[group], strict=True))
    }
    first = 0
    for place, (variable, row) in enumerate(zip(_metric_variables(model), rows, strict=True)):
        of_workers = [part.tobytes()[first : first + row.nbytes] for part in parts]
        first += row.nbytes
        of_replicas = np.frombuffer(b"".join(of_workers), row.dtype)
        shape = (team.replicas, *row.shape[1:])
        arrays[_name("metrics", place, variable)] = of_replicas.reshape(shape)
    return arrays


def optimizers(model: keras.Model) -> list[keras.optimizers.Optimizer]:
    """The model's optimizer, if it is compiled with one, and others that are its attributes.

    A ``train_step`` of the user's own may have several: a generator's and a discriminator's, say.
    """
    compiled = model.optimizer
    known = (compiled, getattr(compiled, "inner_optimizer", None))
    kept = [each for each in vars(model).values() if isinstance(each, keras.optimizers.Optimizer)]
    return [compiled] * bool(compiled) + [each for each in kept if each not in known]


def check_optimizers(model: keras.Model) -> None:
    """Raises BadInput if an optimizer of a built model has no variables yet."""
    for optimizer in optimizers(model):
        if not optimizer.built:
            raise BadInput(
                f"the model's optimizer {optimizer.name} has no variables yet, so that replicas "
                "can't make them together, and checkpoints not have them: build it where the "
                "model is compiled, optimizer.build(variables)"
            )


def check(model: keras.Model, arrays: Mapping[str, np.ndarray]) -> None:
    """Raises BadInput, with the differences, unless ``arrays`` are a state of this built model.

    Variables are known by their place, shape and dtype. Their paths are for people: Keras numbers
    layers over all models that a process has made.
    """
    differences = []
    for group, variables in _groups(model).items():
        skipped = 1 if group == "metrics" else 0  # the dimension of the replicas
        there = {
            place: (path, array.dtype.name, list(array.shape[skipped:]))
            for place, (path, array) in _of_group(group, arrays)
        }
        here = {
            place: (
                variable.path,
                keras.backend.standardize_dtype(variable.dtype),
                [*variable.shape],
            )
            for place, variable in enumerate(variables)
        }
        for place in sorted(there.keys() | here.keys()):
            was, now = there.get(place), here.get(place)
            if was is None or now is None or was[1:] != now[1:]:
                differences.append(f"{group} variable {place} was {_said(was)}, is {_said(now)}")
    if differences:
        more = len(differences) - 3
        raise BadInput(
            f"the checkpoint is of another model: {'; '.join(differences[:3])}"
            f"{f'; and {more} more' if more > 0 else ''}. "
            "Use another --workdir, or the recipe that wrote it"
        )


def restore(model: keras.Model, team: Team, arrays: Mapping[str, np.ndarray]) -> None:
    """Gives a built model the state that ``capture`` copied, on every worker.

    With another number of replicas, the first takes what all had counted: metric states are sums.

    Args:
        model: one that ``check`` found fit.
        team: the workers.
        arrays: the state.
    """
    for group, variables in _variables(model).items():
        for place, (_, array) in _of_group(group, arrays):
            variables[place].assign(array)
    first = team.index * team.local_replicas
    local = []
    for _, (_, rows) in _of_group("metrics", arrays):
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
    return [
        np.stack([value.numpy() for value in strategy.experimental_local_results(state)])
        for state in _read_rows(model)()
    ]


def set_metric_rows(model: keras.Model, rows: Rows) -> None:
    """Gives each replica of this worker its own counts back."""
    if rows:
        _write_rows(model)([tf.constant(row) for row in rows])


@until_recompiled
def _read_variables(model: keras.Model) -> Callable[[], Any]:
    """Makes the function that reads all but metrics at once; for some it may be a collective."""

    @tf.function(autograph=False)
    def read() -> Any:
        return {
            group: [tf.identity(variable.value) for variable in variables]
            for group, variables in _variables(model).items()
        }

    return read  # type: ignore[no-any-return]


@until_recompiled
def _read_rows(model: keras.Model) -> Callable[[], Any]:
    states = metric_states(model)

    @tf.function(autograph=False)
    def read() -> Any:
        return model.distribute_strategy.run(lambda: [tf.identity(state) for state in states])

    return read  # type: ignore[no-any-return]


@until_recompiled
def _write_rows(model: keras.Model) -> Callable[[list[tf.Tensor]], None]:
    states = metric_states(model)

    @tf.function(autograph=False)
    def write(values: list[tf.Tensor]) -> None:
        def on_replica() -> None:
            context = tf.distribute.get_replica_context()
            place = context.replica_id_in_sync_group % values[0].shape[0]
            for state, value in zip(states, values, strict=True):
                state.assign(tf.gather(value, place))

        model.distribute_strategy.run(on_replica)

    return write  # type: ignore[no-any-return]


def _variables(model: keras.Model) -> dict[str, list[keras.Variable]]:
    own = [variable for each in optimizers(model) for variable in each.variables]
    return {"model": model.weights, "optimizer": own}


def _metric_variables(model: keras.Model) -> list[keras.Variable]:
    return [variable for metric in model.metrics for variable in metric.variables]


def _groups(model: keras.Model) -> dict[str, list[keras.Variable]]:
    return _variables(model) | {"metrics": _metric_variables(model)}


def _name(group: str, place: int, variable: keras.Variable) -> str:
    return f"{group}/{place:04d}/{variable.path}"


def _of_group(
    group: str, arrays: Mapping[str, np.ndarray]
) -> list[tuple[int, tuple[str, np.ndarray]]]:
    """Path and array by place."""
    found = []
    for name, array in arrays.items():
        of_group, _, rest = name.partition("/")
        place, _, path = rest.partition("/")
        if of_group == group:
            found.append((int(place), (path, array)))
    return sorted(found, key=lambda each: each[0])


def _said(path_dtype_shape: tuple[str, str, list[int]] | None) -> str:
    if path_dtype_shape is None:
        return "nothing"
    path, dtype, shape = path_dtype_shape
    return f"{path} {dtype}{shape}"
