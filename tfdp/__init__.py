"""Data-parallel Keras on many machines, as if on one that never fails.

Public names are loaded on first use: ``python -m tfdp.train`` has to set signals and logs up before
TensorFlow starts its threads, and asking for help should not wait for it either.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
from typing import TYPE_CHECKING, Any

if importlib.util.find_spec("tensorflow") is None:
    raise ImportError("tfdp needs TensorFlow, which the extra brings: pip install 'tfdp[train]'")

# TensorFlow's own chatter stays away from people unless they ask for it.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

if TYPE_CHECKING:
    from tfdp.errors import BadInput as BadInput
    from tfdp.evaluation import evaluate as evaluate
    from tfdp.evaluation import predict as predict
    from tfdp.exporting import export as export
    from tfdp.fitting import fit as fit
    from tfdp.records import from_tfrecords as from_tfrecords
    from tfdp.sources import Source as Source
    from tfdp.sources import from_arrays as from_arrays
    from tfdp.sources import from_files as from_files
    from tfdp.team import connect as connect
    from tfdp.team import is_chief as is_chief

__version__ = "0.1.0"

_HOMES = {
    "BadInput": "errors",
    "Source": "sources",
    "connect": "team",
    "evaluate": "evaluation",
    "export": "exporting",
    "fit": "fitting",
    "from_arrays": "sources",
    "from_files": "sources",
    "from_tfrecords": "records",
    "is_chief": "team",
    "predict": "evaluation",
}
__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'tfdp' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"tfdp.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(_HOMES))
