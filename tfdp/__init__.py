"""Data-parallel Keras on many machines, as if on one that never fails.

Public names are imported at their first use: ``python -m tfdp.train`` has to set up signals and
logs before TensorFlow starts threads, and ``--help`` should not wait for TensorFlow.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
import os
from typing import TYPE_CHECKING, Any

if importlib.util.find_spec("tensorflow") is None:
    raise ImportError("tfdp needs TensorFlow, which the extra brings: pip install 'tfdp[train]'")

# TensorFlow's own messages are hidden unless the user asks for them.
if os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2") not in ("0", "1"):
    logging.getLogger("tensorflow").addFilter(
        # Advice for who wrote the function: here, that is tfdp, once for each model or shape.
        lambda record: "triggered tf.function retracing" not in record.getMessage()
    )

if TYPE_CHECKING:
    from tfdp.chief import is_chief as is_chief
    from tfdp.data.sources import Source as Source
    from tfdp.data.sources import from_arrays as from_arrays
    from tfdp.data.sources import from_files as from_files
    from tfdp.data.tfrecords import from_tfrecords as from_tfrecords
    from tfdp.errors import BadInput as BadInput
    from tfdp.publishing.exporting import export as export
    from tfdp.search.library import tune as tune
    from tfdp.step.all_gather import all_gather as all_gather
    from tfdp.trainer.connecting import connect as connect
    from tfdp.trainer.evaluation import evaluate as evaluate
    from tfdp.trainer.fitting import fit as fit
    from tfdp.trainer.prediction import predict as predict
    from tfdp.trainer.scores import Scores as Scores

__version__ = "0.1.0"

_MODULES = {
    "BadInput": "errors",
    "Scores": "trainer.scores",
    "Source": "data.sources",
    "all_gather": "step.all_gather",
    "connect": "trainer.connecting",
    "evaluate": "trainer.evaluation",
    "export": "publishing.exporting",
    "fit": "trainer.fitting",
    "from_arrays": "data.sources",
    "from_files": "data.sources",
    "from_tfrecords": "data.tfrecords",
    "is_chief": "chief",
    "predict": "trainer.prediction",
    "tune": "search.library",
}
__all__ = sorted(_MODULES)


def __getattr__(name: str) -> Any:
    module = _MODULES.get(name)
    if module is None:
        raise AttributeError(f"module 'tfdp' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"tfdp.{module}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(_MODULES))
