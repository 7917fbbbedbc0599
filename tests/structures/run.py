"""Computes structures: ``python -m tests.structures.run FOLDER NAME…``.

As a worker where TF_CONFIG says so; by tfdp in this process alone where ``REPLICAS`` is set; else
by plain Keras. Writes ``FOLDER/<name>.npz``, all that may be compared, or ``FOLDER/<name>.error``.
"""

from __future__ import annotations

import faulthandler
import gc
import os
import sys
import traceback
from pathlib import Path

import keras
import numpy as np

import tfdp
from cluster.spec import from_environment
from tests.exactness.registry import precision
from tests.structures import (
    basics,
    contrastive,
    data,
    generative,
    images,
    layers_and_losses,
    tables_and_series,
    text,
    training_loops,
)
from tests.structures.registry import STRUCTURES
from tests.structures.trial import Trial

FAMILIES = (  # in the order of the table; importing them fills STRUCTURES
    *(basics, data, text, images, tables_and_series, layers_and_losses),
    *(training_loops, generative, contrastive),
)
NAMES = [
    name
    for family in FAMILIES
    for name, each in STRUCTURES.items()
    if each.train.__module__ == family.__name__
]
LIMIT_S = 180.0  # for one structure
AFTER_A_FAILURE = 3  # exit code: the workers may have come apart, so others start anew


def main(folder: Path, names: list[str]) -> int:
    """Computes one after the other; ends early if workers fail within one."""
    is_worker = from_environment() is not None
    strategy = tfdp.connect() if is_worker or "REPLICAS" in os.environ else None
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        print(f"structure {name}", flush=True)
        faulthandler.dump_traceback_later(LIMIT_S, exit=True)
        keras.utils.set_random_seed(5)
        trial = Trial(strategy)
        try:
            with precision("float64"):
                STRUCTURES[name].train(trial)
                np.savez(folder / f"{name}.npz", **trial.results())
        except Exception as error:
            traceback.print_exc()
            kind = "refused" if isinstance(error, tfdp.BadInput) else type(error).__name__
            (folder / f"{name}.error").write_text(f"{kind}: {error}")
            if is_worker and kind != "refused":
                return AFTER_A_FAILURE
        del trial
        keras.backend.clear_session()
        gc.collect()
    faulthandler.cancel_dump_traceback_later()
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2:]))
