"""The names of a model's outputs, the same in published signatures and in files of predictions."""

from __future__ import annotations

import collections
import dataclasses
import re
from collections.abc import Iterable, Mapping
from typing import Any

from tfdp.errors import BadInput


def by_name(model: Any, outputs: Any) -> dict[str, Any]:
    """Returns a model's outputs by the names that users gave; a single tensor is "outputs".

    Names are keys of dicts, fields of named tuples and dataclasses, and for a list of a functional
    model's outputs the names of their layers. What has no name is "output" and its place. Names of
    nested outputs are joined by ``_``.

    Args:
        model: the model that returned them.
        outputs: what its ``call`` returned.

    Raises:
        BadInput: if two have the same name.
    """
    named: dict[str, Any] = {}

    def add(name: str, value: Any) -> None:
        parts = _parts(value)
        if parts is not None:
            for key, each in parts:
                add(f"{name}_{key}" if name else str(key), each)
        elif name in named:
            raise BadInput(
                f"two outputs of the model would be called {name!r}, because keys and places of "
                "nested outputs are joined by _: rename one of them"
            )
        else:
            named[name] = value

    if _parts(outputs) is None:
        return {"outputs": outputs}
    if not _is_list(outputs):
        add("", outputs)
        return named
    layers = _layer_names(model)
    for place, each in enumerate(outputs):
        is_named = len(layers) == len(outputs) and _parts(each) is None
        add((is_named and layers[place]) or f"output_{place}", each)
    return named


def _parts(value: Any) -> Iterable[tuple[Any, Any]] | None:
    """Returns the parts of nested outputs with their keys or places; None of a tensor."""
    if isinstance(value, Mapping):
        return value.items()
    if _is_list(value):
        return enumerate(value)
    if isinstance(value, tuple):
        return zip(value._fields, value, strict=True)  # type: ignore[attr-defined]
    if dataclasses.is_dataclass(value):
        return [(field.name, getattr(value, field.name)) for field in dataclasses.fields(value)]
    return None


def _is_list(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and not hasattr(value, "_fields")


def _layer_names(model: Any) -> list[str | None]:
    """Returns the name of each output's layer in a functional model, None where Keras chose it.

    Keras's own names count the layers of the process (``dense_3``), so another process may give
    another name to the same output. A layer with several outputs names none of them.
    """
    for method in ("call", "predict_step"):  # a user's returns what it likes
        definer = next((each for each in type(model).__mro__ if method in vars(each)), object)
        if not definer.__module__.startswith("keras."):
            return []
    names = getattr(model, "output_names", None) or []
    uses = collections.Counter(names)
    kinds = {each.name: type(each).__name__ for each in getattr(model, "operations", ())}
    return [
        None if uses[name] > 1 or _is_automatic(name, kinds.get(name, "")) else name
        for name in names
    ]


def _is_automatic(name: str, kind: str) -> bool:
    """Returns whether Keras makes such a name from the name of a layer's class."""
    stem = re.sub(r"_\d+$", "", name)
    return stem.replace("_", "").lower() == kind.replace("_", "").lower()
