"""The state of a model as named arrays, and back: weights, optimizers, each replica's metrics."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfdp.errors import BadInput
from tfdp.step.metrics import local_metric_states, metric_variables, set_local_metric_states
from tfdp.step.optimizers import LEARNING_RATE, optimizers
from tfdp.step.per_compile import once_per_compile
from tfdp.workers.collectives import Workers

_OPTIMIZER = "optimizer"
_METRICS = "metrics"  # the group of arrays whose first dimension counts replicas


def capture(model: keras.Model, workers: Workers) -> dict[str, np.ndarray]:
    """Copies the state to host memory; a collective.

    Random layers have no state: their draws are a function of the step.

    Returns:
        All arrays by name on the chief, none on the other workers.
    """
    local_states = local_metric_states(model)
    local_bytes = b"".join(state.tobytes() for state in local_states)  # of equal size everywhere
    words = np.frombuffer(local_bytes.ljust(-(-len(local_bytes) // 4) * 4, b"\0"), np.int32)
    of_workers = workers.gather(words) if len(words) else words  # one exchange for all metrics
    values = _variables_reader(model)()
    if not workers.is_chief:
        return {}
    arrays = {
        _array_name(group, place, variable): np.asarray(value.numpy())
        for group, variables in _variables(model).items()
        for place, (variable, value) in enumerate(zip(variables, values[group], strict=True))
    }
    start = 0
    pairs = zip(metric_variables(model), local_states, strict=True)
    for place, (variable, state) in enumerate(pairs):
        parts = [row.tobytes()[start : start + state.nbytes] for row in of_workers]
        start += state.nbytes
        of_replicas = np.frombuffer(b"".join(parts), state.dtype)
        shape = (workers.replicas, *state.shape[1:])
        arrays[_array_name(_METRICS, place, variable)] = of_replicas.reshape(shape)
    return arrays


def without_learning_rates(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns a state without learning rates: ``restore`` leaves those of the model as they are."""
    return {name: array for name, array in arrays.items() if not _is_learning_rate(name)}


def check(model: keras.Model, arrays: Mapping[str, np.ndarray]) -> None:
    """Raises BadInput, with the differences, unless ``arrays`` are a state of this built model.

    Variables are identified by place, shape and dtype. Their paths are only for people (Keras
    numbers layers over all models of a process), but for the ends of those of learning rates.
    """
    differences = []
    groups = _variables_for(model, arrays) | {_METRICS: metric_variables(model)}
    for group, variables in groups.items():
        skipped_dimensions = 1 if group == _METRICS else 0
        expected = {
            place: (
                variable.path,
                keras.backend.standardize_dtype(variable.dtype),
                [*variable.shape],
            )
            for place, variable in enumerate(variables)
        }
        saved = {
            place: (path, array.dtype.name, list(array.shape[skipped_dimensions:]))
            for place, (path, array) in enumerate(_arrays_of(group, arrays))
        }
        for place in sorted(saved.keys() | expected.keys()):
            saved_one, expected_one = saved.get(place), expected.get(place)
            if saved_one is None or expected_one is None or saved_one[1:] != expected_one[1:]:
                was, now = _described(saved_one), _described(expected_one)
                differences.append(f"{group} variable {place} was {was}, is {now}")
    if differences:
        more = len(differences) - 3
        raise BadInput(
            f"the checkpoint is of another model: {'; '.join(differences[:3])}"
            f"{f'; and {more} more' if more > 0 else ''}. "
            "Use another --workdir, or the recipe that wrote it, with its --hparam"
        )


def restore(model: keras.Model, workers: Workers, arrays: Mapping[str, np.ndarray]) -> None:
    """Sets a built model to the state that ``capture`` copied, on every worker.

    With another number of replicas, the first replica gets the sum of all metric states.

    Args:
        model: a model that passed ``check``.
        workers: the workers.
        arrays: the state.
    """
    for group, variables in _variables_for(model, arrays).items():
        for variable, (_, array) in zip(variables, _arrays_of(group, arrays), strict=True):
            variable.assign(array)
    first = workers.index * workers.local_replicas
    local_states = []
    for _, states in _arrays_of(_METRICS, arrays):
        if len(states) != workers.replicas:
            states = np.concatenate(
                [states.sum(axis=0, keepdims=True, dtype=states.dtype)]
                + [np.zeros_like(states[:1])] * (workers.replicas - 1)
            )
        local_states.append(states[first : first + workers.local_replicas])
    set_local_metric_states(model, local_states)


@once_per_compile
def _variables_reader(model: keras.Model) -> Callable[[], Any]:
    """Returns a function that reads all variables but metrics at once; it may be a collective."""

    @tf.function(autograph=False)
    def read() -> Any:
        return {
            group: [tf.identity(variable.value) for variable in variables]
            for group, variables in _variables(model).items()
        }

    return read  # type: ignore[no-any-return]


def _variables(model: keras.Model) -> dict[str, list[keras.Variable]]:
    of_optimizers = [variable for each in optimizers(model) for variable in each.variables]
    return {"model": model.weights, _OPTIMIZER: of_optimizers}


def _variables_for(
    model: keras.Model, arrays: Mapping[str, np.ndarray]
) -> dict[str, list[keras.Variable]]:
    """Returns the variables that a state has values for: all, or all but the learning rates."""
    variables = _variables(model)
    if not any(map(_is_learning_rate, arrays)):
        of_optimizers = variables[_OPTIMIZER]
        variables[_OPTIMIZER] = [each for each in of_optimizers if each.name != LEARNING_RATE]
    return variables


def _is_learning_rate(array_name: str) -> bool:
    return array_name.startswith(f"{_OPTIMIZER}/") and array_name.endswith(f"/{LEARNING_RATE}")


def _array_name(group: str, place: int, variable: keras.Variable) -> str:
    return f"{group}/{place:04d}/{variable.path}"


def _arrays_of(group: str, arrays: Mapping[str, np.ndarray]) -> list[tuple[str, np.ndarray]]:
    """Returns path and value of each array in a group, in the order of its variables."""
    found = []
    for name, array in arrays.items():
        array_group, place, path = name.split("/", 2) if name.count("/") > 1 else ("", "", "")
        if array_group == group:
            found.append((int(place), (path, array)))
    return [path_and_array for _, path_and_array in sorted(found, key=lambda each: each[0])]


def _described(path_dtype_shape: tuple[str, str, list[int]] | None) -> str:
    if path_dtype_shape is None:
        return "nothing"
    path, dtype, shape = path_dtype_shape
    return f"{path} {dtype}{shape}"
