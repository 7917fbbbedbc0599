"""The 1,797 scans of handwritten digits, 8 by 8 grey pixels from 0 to 16, of scikit-learn."""

from __future__ import annotations

import numpy as np


def scans(held_out: bool) -> tuple[np.ndarray, np.ndarray]:
    """Raw scans (uint8[n, 8, 8]) and the digits that they show (int32[n]).

    Args:
        held_out: the fifth of them that is for evaluation, drawn by a fixed seed, or the rest.

    Raises:
        ImportError: without scikit-learn, which the extra ``demo`` brings.
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
