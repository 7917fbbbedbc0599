"""The names of a model's outputs, the same in published signatures and in files of predictions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tfdp.errors import BadInput


def by_name(outputs: Any) -> dict[str, Any]:
    """Returns outputs by name: "outputs" if there is one.

    Keys and places of nested outputs are joined by ``_``; without keys, names begin with "output".

    Raises:
        BadInput: if two have the same name.
    """
    if not isinstance(outputs, (Mapping, list, tuple)):
        return {"outputs": outputs}
    named: dict[str, Any] = {}

    def add(name: str, value: Any) -> None:
        if isinstance(value, (Mapping, list, tuple)):
            for key, each in value.items() if isinstance(value, Mapping) else enumerate(value):
                add(f"{name}_{key}" if name else str(key), each)
        elif name in named:
            raise BadInput(
                f"two outputs of the model would be called {name!r}, because keys and places of "
                "nested outputs are joined by _: rename one of them"
            )
        else:
            named[name] = value

    add("" if isinstance(outputs, Mapping) else "output", outputs)
    return named
