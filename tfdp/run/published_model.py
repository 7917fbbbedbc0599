"""A published version as a Keras model, which can be evaluated like the recipe's model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

from tfdp.errors import BadInput
from tfdp.log import say_on_chief
from tfdp.publishing.features import to_inputs


class PublishedModel(keras.Model):
    """A published version, called by its ``serving_default``, with losses and metrics of a model.

    Args:
        path: folder of the version.
        like: a compiled model of the recipe, whose losses and metrics are used; None leaves them
            out, for prediction.

    Raises:
        BadInput: if there is no such version.
    """

    def __init__(self, path: Path, like: keras.Model | None) -> None:
        super().__init__()
        if like is not None:
            self._say_what_is_left_out(like)
        try:
            loaded = tf.saved_model.load(str(path))
            self._signature = loaded.signatures["serving_default"]
        except (OSError, KeyError) as error:
            raise BadInput(
                f"--version={path} can't be loaded: {error}; name the folder of a version, as "
                "in models/digits/3"
            ) from None
        self._loaded = loaded  # its variables live as long as it does
        if like is not None:
            self._compile_like(like)

    def _say_what_is_left_out(self, like: keras.Model) -> None:
        if like.losses or any(
            getattr(type(like), name) is not getattr(keras.Model, name)
            for name in ("test_step", "compute_loss", "compute_metrics")
        ):
            say_on_chief(
                "a version only computes outputs: the result leaves out regularizers, add_loss and "
                "the model's own test_step, compute_loss and compute_metrics"
            )

    def _compile_like(self, like: keras.Model) -> None:
        try:
            self.compile_from_config(like.get_compile_config())
        except (TypeError, ValueError) as error:
            raise BadInput(
                f"the recipe's losses and metrics can't be created again for the version: {error}; "
                "use Keras's, or classes and functions of the recipe's module"
            ) from error

    def call(self, features: Any, training: bool = False) -> Any:
        """Returns the version's outputs, in the structure of the model's."""
        outputs = self._signature(**to_inputs(features))
        if outputs.keys() == {"outputs"}:
            return outputs["outputs"]
        in_order = [f"output_{place}" for place in range(len(outputs))]
        if outputs.keys() == set(in_order):
            return [outputs[name] for name in in_order]
        return {name: outputs[name] for name in sorted(outputs)}  # TensorFlow keeps no order
