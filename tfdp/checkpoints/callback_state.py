"""The state of callbacks as named arrays, and back, so that a run can go on exactly.

For Keras's own callbacks, this module lists the attributes to save. Other callbacks have two
methods: ``get_state()`` returns numbers, strings, lists, dicts and arrays, and ``set_state(state)``
restores them. Nothing is pickled, so reading a checkpoint runs no code.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

from tfdp.errors import TrainingError

PREFIX = "callbacks/"
_TREE = f"{PREFIX}tree"  # JSON, which refers to the other arrays by number
_ARRAY = "array"  # the only key of a dict that refers to an array

_ATTRIBUTES = {  # attributes that Keras's callbacks change while they run
    keras.callbacks.EarlyStopping: ("wait", "stopped_epoch", "best", "best_epoch", "best_weights"),
    keras.callbacks.History: ("epoch", "history"),
    keras.callbacks.ModelCheckpoint: ("best",),
    keras.callbacks.ReduceLROnPlateau: ("wait", "cooldown_counter", "best"),
}


def capture(callbacks: Sequence[keras.callbacks.Callback]) -> dict[str, np.ndarray]:
    """Copies the state of callbacks.

    Raises:
        TrainingError: if a callback's ``get_state`` returns values that can't be saved.
    """
    arrays: list[np.ndarray] = []
    tree = []
    for callback in callbacks:
        try:
            tree.append([type(callback).__name__, _to_json(_state(callback), arrays)])
        except TypeError as error:
            raise TrainingError(
                f"the state of {type(callback).__name__} can't be saved: {error}; get_state has to "
                "give numbers, strings, lists, dicts with strings as keys, and arrays"
            ) from error
    named = {f"{PREFIX}{i:04d}": array for i, array in enumerate(arrays)}
    return {_TREE: np.frombuffer(json.dumps(tree).encode(), np.uint8), **named}


def restore(
    callbacks: Sequence[keras.callbacks.Callback],
    local_callbacks: Sequence[keras.callbacks.Callback],
    saved: Mapping[str, np.ndarray],
) -> list[str]:
    """Restores the state that ``capture`` copied; call it after ``on_train_begin``.

    Args:
        callbacks: the same number and types as at ``capture``; others start without a state.
        local_callbacks: those of them that run on this worker.
        saved: arrays of a checkpoint.

    Returns:
        The type names of callbacks that start without a state.
    """
    tree = json.loads(saved[_TREE].tobytes()) if _TREE in saved else []
    unsaved = []
    for place, callback in enumerate(callbacks):
        kind = type(callback).__name__
        if place >= len(tree) or tree[place][0] != kind or tree[place][1] is None:
            unsaved.append(kind)
        elif callback in local_callbacks:
            _set_state(callback, _from_json(tree[place][1], saved))
    return unsaved


def _state(callback: keras.callbacks.Callback) -> dict[str, Any] | None:
    """Returns a callback's state; None if its state is unknown."""
    state: dict[str, Any] = {
        name: getattr(callback, name)
        for kind, names in _ATTRIBUTES.items()
        if isinstance(callback, kind)
        for name in names
    }
    if isinstance(callback, keras.callbacks.CSVLogger):
        path = Path(callback.filename)
        # The whole file, so that no row is repeated or lost, wherever the next chief runs.
        state["text"] = path.read_bytes().decode() if path.exists() else ""
        state["keys"] = callback.keys
    if hasattr(callback, "get_state"):
        state["own"] = callback.get_state()
    is_of_keras = type(callback).__module__.startswith("keras.")
    return state if state or is_of_keras else None


def _set_state(callback: keras.callbacks.Callback, state: dict[str, Any]) -> None:
    own = state.pop("own", None)
    if isinstance(callback, keras.callbacks.CSVLogger):
        text = state.pop("text")
        callback.csv_file.close()  # opening the file has truncated it
        Path(callback.filename).write_bytes(text.encode())
        callback.csv_file = Path(callback.filename).open("a")  # noqa: SIM115
        callback.append_header = not text
    if state.get("best_weights"):  # arrays without a dimension were saved as numbers
        state["best_weights"] = [np.asarray(weight) for weight in state["best_weights"]]
    for name, value in state.items():
        setattr(callback, name, value)
    if own is not None:
        callback.set_state(own)


def _to_json(value: Any, arrays: list[np.ndarray]) -> Any:
    """Returns the value as JSON takes it; appends its arrays to ``arrays``."""
    if isinstance(value, np.ndarray) and value.dtype.kind in "USO":
        raise TypeError(f"an array has the dtype {value.dtype}")
    if isinstance(value, np.ndarray) and value.ndim:
        arrays.append(np.array(value))
        return {_ARRAY: len(arrays) - 1}
    if isinstance(value, (np.generic, np.ndarray)):
        return value.item()
    if isinstance(value, Mapping):
        if not all(isinstance(key, str) for key in value) or value.keys() == {_ARRAY}:
            raise TypeError(f"a dict has the keys {list(value)}")
        return {key: _to_json(each, arrays) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_to_json(each, arrays) for each in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(f"there is a {type(value).__name__} in it")


def _from_json(value: Any, saved: Mapping[str, np.ndarray]) -> Any:
    if isinstance(value, list):
        return [_from_json(each, saved) for each in value]
    if not isinstance(value, dict):
        return value
    if value.keys() == {_ARRAY}:
        return np.array(saved[f"{PREFIX}{value[_ARRAY]:04d}"])
    return {key: _from_json(each, saved) for key, each in value.items()}
