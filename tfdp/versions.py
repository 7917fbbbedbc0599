"""Versions of the packages that a result depends on."""

from __future__ import annotations

import keras
import tensorflow as tf

import tfdp


def package_versions() -> dict[str, str]:
    """Returns the versions of TensorFlow, Keras and tfdp, by package name."""
    return {
        "tensorflow": tf.__version__,
        "keras": keras.__version__,
        "tfdp": tfdp.__version__,
    }
