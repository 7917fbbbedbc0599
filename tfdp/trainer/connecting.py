"""``tfdp.connect`` as scripts use it: it also adapts Keras to several workers."""

from __future__ import annotations

import functools
import warnings

import tensorflow as tf

from tfdp.chief import is_chief
from tfdp.choices import Cluster, Communication
from tfdp.trainer import keras_methods
from tfdp.workers import connecting


@functools.wraps(connecting.connect)
def connect(
    communication: Communication = "auto",
    startup_timeout_s: float = 600.0,
    cluster: Cluster = "auto",
) -> tf.distribute.Strategy:
    """As ``connecting.connect``, whose docstring it gets."""
    strategy = connecting.connect(communication, startup_timeout_s, cluster)
    keras_methods.adapt()
    if not is_chief():  # all workers run the same program, and Keras warns on each
        warnings.filterwarnings("ignore", module=r"(keras|tfdp)\.")
    return strategy
