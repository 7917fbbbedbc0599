"""One random state for all workers, so that what they draw for their data is alike.

``dataset.shuffle`` without a seed, ``np.random`` and ``random`` start differently in every process.
"""

from __future__ import annotations

import hashlib
import pickle
import random
import secrets

import numpy as np
import tensorflow as tf

from tfdp.workers.collectives import Workers

_UNSET = 87654321  # what TensorFlow gives as the global seed if there is none


def share_random_state(workers: Workers) -> None:
    """Gives all workers the chief's random state, as far as theirs differ; a collective.

    It covers Python's ``random``, ``np.random`` and TensorFlow's global seed. If no seed was set,
    another one is drawn in every run. A single process is left alone.
    """
    if workers.count == 1:
        return
    state = pickle.dumps((random.getstate(), np.random.get_state()))
    digest = int.from_bytes(hashlib.sha256(state).digest()[:6], "big")
    seed = _tensorflow_seed()
    of_workers = workers.gather(np.array([digest, seed], np.int64))
    if (of_workers == of_workers[0]).all() and seed != _UNSET:
        return
    drawn = secrets.randbelow(1 << 31) if seed == _UNSET else seed
    # The bytes are the chief's, which is a part of this program, and not a stranger's.
    state, seed = pickle.loads(workers.broadcast(pickle.dumps((state, drawn))))
    python_state, numpy_state = pickle.loads(state)
    random.setstate(python_state)
    np.random.set_state(numpy_state)
    tf.random.set_seed(seed)


def _tensorflow_seed() -> int:
    """Returns TensorFlow's global seed, or ``_UNSET``."""
    seed, _ = tf.compat.v1.random.get_seed(0)
    return int(seed)
