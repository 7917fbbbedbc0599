"""What callbacks have noted, as named arrays and back: without it a run could not go on exactly.

Of Keras's own callbacks we know what to keep. Anybody else's say so themselves, by two methods:
``get_state()`` gives numbers, strings, lists, dicts and arrays, and ``set_state(state)`` takes them
back. No pickle: reading a checkpoint runs nothing.
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
_TREE = f"{PREFIX}tree"  # JSON, in which arrays are numbers of others
_ARRAY = "array"  # the one key of a dict that stands for one

_NOTES = {  # attributes that Keras's own change while they run
    keras.callbacks.EarlyStopping: ("wait", "stopped_epoch", "best", "best_epoch", "best_weights"),
    keras.callbacks.History: ("epoch", "history"),
    keras.callbacks.ModelCheckpoint: ("best",),
    keras.callbacks.ReduceLROnPlateau: ("wait", "cooldown_counter", "best"),
}


def capture(callbacks: Sequence[keras.callbacks.Callback]) -> dict[str, np.ndarray]:
    """Copies what callbacks have noted.

    Raises:
        TrainingError: if a callback's ``get_state`` gives what can't be kept.
    """
    arrays: list[np.ndarray] = []
    tree = []
    for callback in callbacks:
        try:
            tree.append([type(callback).__name__, _packed(_state(callback), arrays)])
        except TypeError as error:
            raise TrainingError(
                f"the state of {type(callback).__name__} can't be saved: {error}; get_state has to "
                "give numbers, strings, lists, dicts with strings as keys, and arrays"
            ) from error
    named = {f"{PREFIX}{i:04d}": array for i, array in enumerate(arrays)}
    return {_TREE: np.frombuffer(json.dumps(tree).encode(), np.uint8), **named}


def restore(
    callbacks: Sequence[keras.callbacks.Callback],
    here: Sequence[keras.callbacks.Callback],
    saved: Mapping[str, np.ndarray],
) -> list[str]:
    """Gives callbacks back what ``capture`` copied, after they were told that training begins.

    Args:
        callbacks: as many and of the same kinds as then; others begin anew.
        here: those of them that run on this worker.
        saved: arrays of a checkpoint.

    Returns:
        The names of those that begin anew.
    """
    tree = json.loads(saved[_TREE].tobytes()) if _TREE in saved else []
    anew = []
    for place, callback in enumerate(callbacks):
        kind = type(callback).__name__
        if place >= len(tree) or tree[place][0] != kind or tree[place][1] is None:
            anew.append(kind)
        elif callback in here:
            _set_state(callback, _unpacked(tree[place][1], saved))
    return anew


def _state(callback: keras.callbacks.Callback) -> dict[str, Any] | None:
    """What to keep of a callback; None if nobody knows."""
    state: dict[str, Any] = {
        name: getattr(callback, name)
        for kind, names in _NOTES.items()
        if isinstance(callback, kind)
        for name in names
    }
    if isinstance(callback, keras.callbacks.CSVLogger):
        path = Path(callback.filename)
        # All of it, so that no row is doubled or lost, wherever the next chief runs.
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
        callback.csv_file.close()  # opening it has emptied it
        Path(callback.filename).write_bytes(text.encode())
        callback.csv_file = Path(callback.filename).open("a")  # noqa: SIM115
        callback.append_header = not text
    if state.get("best_weights"):  # those without a dimension were kept as numbers
        state["best_weights"] = [np.asarray(weight) for weight in state["best_weights"]]
    for name, value in state.items():
        setattr(callback, name, value)
    if own is not None:
        callback.set_state(own)


def _packed(value: Any, arrays: list[np.ndarray]) -> Any:
    """The value as JSON takes it; its arrays go to ``arrays``."""
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
        return {key: _packed(each, arrays) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_packed(each, arrays) for each in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(f"there is a {type(value).__name__} in it")


def _unpacked(value: Any, saved: Mapping[str, np.ndarray]) -> Any:
    if isinstance(value, list):
        return [_unpacked(each, saved) for each in value]
    if not isinstance(value, dict):
        return value
    if value.keys() == {_ARRAY}:
        return np.array(saved[f"{PREFIX}{value[_ARRAY]:04d}"])
    return {key: _unpacked(each, saved) for key, each in value.items()}
