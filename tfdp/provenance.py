"""What a result is identified by: the versions of packages, and the digest of weights."""

from __future__ import annotations

import hashlib

import keras
import numpy as np
import tensorflow as tf

import tfdp


def package_versions() -> dict[str, str]:
    """Returns the versions of TensorFlow, Keras and tfdp, by package name."""
    return {
        "tensorflow": tf.__version__,
        "keras": keras.__version__,
        "tfdp": tfdp.__version__,
    }


def weights_sha256(model: keras.Model) -> str:
    """Returns the sha256 of all weights in ``model.weights`` order, as little-endian bytes."""
    digest = hashlib.sha256()
    for weight in model.weights:
        array = np.asarray(tf.convert_to_tensor(weight.value))  # of CPUs, it is not copied
        array = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
        digest.update(array.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()
