"""States of models as checkpoints, for tests."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import safetensors.numpy

from tfdp.checkpoints.state_file import open_mapped
from tfdp.checkpoints.store import Checkpoint


def checkpoint_of(arrays: Mapping[str, np.ndarray]) -> Checkpoint:
    """Returns a checkpoint of arrays, whose file safetensors has written."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "state.safetensors"
        safetensors.numpy.save_file(dict(arrays), path)
        mapped = open_mapped(path)
    return Checkpoint(0, {}, mapped.places, mapped)
