"""Which environment variables of the launcher its workers on other hosts get."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

_PREFIXES: Final = ("TF_", "KERAS_", "TFDP_", "PYTHON", "CUDA_", "NCCL_", "XLA_")
_NAMES: Final = ("PATH", "LD_LIBRARY_PATH")


def passed_on(environ: Mapping[str, str], more: Sequence[str] = ()) -> dict[str, str]:
    """Returns the variables that workers on other hosts get from the launcher.

    Args:
        environ: the launcher's.
        more: names of further variables.

    Raises:
        KeyError: if one of ``more`` is not set.
    """
    chosen = {
        name: value
        for name, value in environ.items()
        if name.startswith(_PREFIXES) or name in _NAMES
    }
    # Unbuffered, so that the last lines of a killed worker are printed too.
    return {"PYTHONUNBUFFERED": "1", **chosen, **{name: environ[name] for name in more}}
