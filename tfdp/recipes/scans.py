"""scikit-learn's 1,797 scans of handwritten digits, each 8 by 8 grey pixels from 0 to 16."""

from __future__ import annotations

import numpy as np


def scans(held_out: bool) -> tuple[np.ndarray, np.ndarray]:
    """Returns raw scans (uint8[n, 8, 8]) and the digits that they show (int32[n]).

    Args:
        held_out: whether to return the fifth for evaluation, drawn by a fixed seed, or the rest.

    Raises:
        ImportError: if scikit-learn is missing; the extra ``demo`` installs it.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise ImportError("the scans are in scikit-learn: pip install 'tfdp[demo]'") from None

    digits = load_digits()
    order = np.random.default_rng(1797).permutation(len(digits.target))
    fifth = len(order) // 5
    chosen = order[:fifth] if held_out else order[fifth:]
    return digits.images[chosen].astype(np.uint8), digits.target[chosen].astype(np.int32)
