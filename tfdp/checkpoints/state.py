"""The state of a model as named arrays, and back: weights, optimizers, each replica's metrics."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfdp.checkpoints.reading import arrays
from tfdp.checkpoints.state_file import Place
from tfdp.checkpoints.store import Checkpoint
from tfdp.errors import BadInput
from tfdp.step.metrics import local_metric_states, metric_variables, set_local_metric_states
from tfdp.step.optimizers import LEARNING_RATE, optimizers
from tfdp.step.per_compile import once_per_compile
from tfdp.workers.collectives import Workers

_MODEL = "model"
_OPTIMIZER = "optimizer"
_METRICS = "metrics"  # the group of arrays whose first dimension counts replicas


def capture(
    model: keras.Model, workers: Workers, copies: Mapping[str, np.ndarray] | None = None
) -> dict[str, np.ndarray]:
    """Copies the state to host memory; a collective.

    Random layers have no state: their draws are a function of the step.

    Args:
        model: a built model.
        workers: the workers.
        copies: an earlier result, whose memory is used again.

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
    captured = {}
    for group, variables in _variables(model).items():
        for place, (variable, value) in enumerate(zip(variables, values[group], strict=True)):
            name = _array_name(group, place, variable)
            captured[name] = _copied(np.asarray(value), (copies or {}).get(name))
    start = 0
    pairs = zip(metric_variables(model), local_states, strict=True)
    for place, (variable, state) in enumerate(pairs):
        parts = [row.tobytes()[start : start + state.nbytes] for row in of_workers]
        start += state.nbytes
        of_replicas = np.frombuffer(b"".join(parts), state.dtype)
        shape = (workers.replicas, *state.shape[1:])
        captured[_array_name(_METRICS, place, variable)] = of_replicas.reshape(shape)
    return captured


def without_learning_rates(checkpoint: Checkpoint) -> Checkpoint:
    """Returns a checkpoint without learning rates: ``restore`` leaves those of the model as is."""
    return _with_places(checkpoint, lambda name: not _is_learning_rate(name))


def without_variables(checkpoint: Checkpoint) -> Checkpoint:
    """Returns a checkpoint without weights and optimizers: ``restore`` leaves them as they are."""
    return _with_places(
        checkpoint, lambda name: not name.startswith((f"{_MODEL}/", f"{_OPTIMIZER}/"))
    )


def check(model: keras.Model, places: Mapping[str, Place]) -> None:
    """Raises BadInput, with the differences, unless a checkpoint's arrays fit this built model.

    Variables are identified by place, shape and dtype. Their paths are only for people (Keras
    numbers layers over all models of a process), but for the ends of those of learning rates.

    Args:
        model: a built model.
        places: the checkpoint's.
    """
    differences = []
    groups = _variables_for(model, places) | {_METRICS: metric_variables(model)}
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
            place: (
                name.split("/", 2)[2],
                places[name].numpy_dtype.name,
                [*places[name].shape[skipped_dimensions:]],
            )
            for place, name in enumerate(_names_of(group, places))
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


def restore(model: keras.Model, workers: Workers, checkpoint: Checkpoint) -> dict[str, np.ndarray]:
    """Sets a built model to the state of a checkpoint, on every worker; a collective.

    With another number of replicas, the first replica gets the sum of all metric states.

    Args:
        model: a model that passed ``check``.
        workers: the workers.
        checkpoint: from ``reading``.

    Returns:
        The arrays that are not the model's, by name.
    """
    targets: dict[str, keras.Variable] = {}
    for group, variables in _variables_for(model, checkpoint.places).items():
        names = _names_of(group, checkpoint.places)
        targets |= dict(zip(names, variables, strict=True)) if names else {}
    of_metrics: dict[str, np.ndarray] = {}
    others = {}
    for name, array in arrays(checkpoint, workers):
        if name in targets:
            targets[name].assign(array)
        elif name.startswith(f"{_METRICS}/"):
            of_metrics[name] = _local_states(array, workers)
        else:
            others[name] = np.array(array)
    in_order = _names_of(_METRICS, of_metrics)
    set_local_metric_states(model, [of_metrics[name] for name in in_order])
    return others


def _local_states(states: np.ndarray, workers: Workers) -> np.ndarray:
    """Returns the metric states of this worker's replicas, from those of all replicas."""
    first = workers.index * workers.local_replicas
    if len(states) != workers.replicas:
        states = np.concatenate(
            [states.sum(axis=0, keepdims=True, dtype=states.dtype)]
            + [np.zeros_like(states[:1])] * (workers.replicas - 1)
        )
    return np.array(states[first : first + workers.local_replicas])


def _copied(array: np.ndarray, copy: np.ndarray | None) -> np.ndarray:
    """Copies an array, if it fits into the memory of an earlier copy."""
    if copy is None or (copy.shape, copy.dtype) != (array.shape, array.dtype):
        copy = np.empty(array.shape, array.dtype)
    np.copyto(copy, array)
    return copy


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
    return {_MODEL: model.weights, _OPTIMIZER: of_optimizers}


def _variables_for(model: keras.Model, names: Collection[str]) -> dict[str, list[keras.Variable]]:
    """Returns the variables that a checkpoint has values for: all, or all but learning rates."""
    variables = _variables(model)
    if not any(map(_is_learning_rate, names)):
        of_optimizers = variables[_OPTIMIZER]
        variables[_OPTIMIZER] = [each for each in of_optimizers if each.name != LEARNING_RATE]
    return variables


def _with_places(checkpoint: Checkpoint, is_kept: Callable[[str], bool]) -> Checkpoint:
    kept = {name: place for name, place in checkpoint.places.items() if is_kept(name)}
    return dataclasses.replace(checkpoint, places=kept)


def _is_learning_rate(array_name: str) -> bool:
    return array_name.startswith(f"{_OPTIMIZER}/") and array_name.endswith(f"/{LEARNING_RATE}")


def _array_name(group: str, place: int, variable: keras.Variable) -> str:
    return f"{group}/{place:04d}/{variable.path}"


def _names_of(group: str, names: Collection[str]) -> list[str]:
    """Returns the names of a group's arrays, in the order of its variables."""
    of_group = [name for name in names if name.startswith(f"{group}/")]
    return sorted(of_group, key=lambda name: int(name.split("/", 2)[1]))


def _described(path_dtype_shape: tuple[str, str, list[int]] | None) -> str:
    if path_dtype_shape is None:
        return "nothing"
    path, dtype, shape = path_dtype_shape
    return f"{path} {dtype}{shape}"
