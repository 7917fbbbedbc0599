"""Imports TensorFlow without packages that Keras loads only to extend them."""

from __future__ import annotations

import gc
import sys
from typing import Final

# For keras.wrappers and keras.visualization.plot_image_gallery (keras/src/wrappers,
# keras/src/visualization in Keras 3.15), which no command needs.
_LEFT_OUT: Final = ("sklearn", "matplotlib")


def import_tensorflow() -> None:
    """Imports TensorFlow and Keras, in half of the time if scikit-learn is installed.

    Garbage is not collected meanwhile. Nor are the modules searched for garbage later: that would
    take 0.2 s, in the middle of a step.

    The packages that are left out can be imported afterwards as ever; only ``keras.wrappers`` and
    ``keras.visualization.plot_image_gallery`` have started without them, and raise ImportError.
    """
    left_out = [name for name in _LEFT_OUT if name not in sys.modules]
    sys.modules.update(dict.fromkeys(left_out))  # type: ignore[arg-type]  # an import then fails
    gc.disable()
    try:
        import tensorflow  # noqa: F401
    finally:
        gc.freeze()
        gc.enable()
        for name in left_out:
            del sys.modules[name]
