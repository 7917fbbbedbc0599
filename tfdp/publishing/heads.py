"""Heads: how a model's single output becomes the answer to Classify or Regress."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import keras
import tensorflow as tf

from tfdp.errors import BadInput

Activation = Callable[[tf.Tensor], tf.Tensor]

_SOFTMAX_LOSSES = (
    keras.losses.SparseCategoricalCrossentropy,
    keras.losses.CategoricalCrossentropy,
    keras.losses.CategoricalFocalCrossentropy,
)
_SIGMOID_LOSSES = (keras.losses.BinaryCrossentropy, keras.losses.BinaryFocalCrossentropy)
_SCORE_LOSSES = {  # loss functions that, without arguments, take scores and not logits
    "sparse_categorical_crossentropy",
    "categorical_crossentropy",
    "categorical_focal_crossentropy",
    "binary_crossentropy",
    "binary_focal_crossentropy",
}


@dataclasses.dataclass(frozen=True)
class Head:
    """Turns a single output of shape [n], [n, 1] or [n, classes] into an answer.

    Args:
        signature: ``classify`` or ``regress``.
        class_names: names of all classes, for ``classify``.
        activation: computes scores from logits; None if the output is scores.
        is_binary: whether the output is only the score of the second of two classes.
    """

    signature: str
    class_names: tuple[str, ...] = ()
    activation: Activation | None = None
    is_binary: bool = False

    def answer(self, outputs: tf.Tensor) -> dict[str, tf.Tensor]:
        """Returns the signature's outputs, with the dtypes and shapes that TF Serving requires."""
        outputs = tf.cast(outputs, tf.float32)
        if self.signature == "regress":
            return {"outputs": tf.reshape(outputs, [-1, 1])}
        outputs = tf.reshape(outputs, [tf.shape(outputs)[0], -1])
        scores = outputs if self.activation is None else self.activation(outputs)
        if self.is_binary:
            scores = tf.concat([1 - scores, scores], axis=1)
        classes = tf.tile([list(self.class_names)], [tf.shape(scores)[0], 1])
        return {"classes": classes, "scores": tf.ensure_shape(scores, classes.shape)}


def find_head(
    model: keras.Model, outputs: Mapping[str, tf.TensorSpec], class_names: Sequence[str] | None
) -> Head | None:
    """Returns the head of a model, by its loss, outputs and class names; None if it has none.

    Raises:
        BadInput: if ``class_names`` are given, and do not match the outputs.
    """
    columns = None
    specs = list(outputs.values())
    shape = specs[0].shape if len(specs) == 1 else None
    if shape is not None and shape.rank in (1, 2) and specs[0].dtype.is_floating:
        columns = 1 if shape.rank == 1 else shape[1]
    activation, is_classifier = _inspect_loss(model)
    if columns is None:
        if class_names is not None:
            raise BadInput(
                f"class_names are given, and the model's outputs are {dict(outputs)}: classes are "
                "the columns of a single output of floats"
            )
        return None
    if not is_classifier and class_names is None:
        return Head("regress") if columns == 1 else None
    classes = 2 if columns == 1 else columns
    names = tuple(map(str, range(classes)) if class_names is None else class_names)
    if len(names) != classes:
        raise BadInput(
            f"there are {len(names)} class_names, and the model's outputs are "
            f"{shape}: {classes} are needed"
        )
    return Head("classify", names, activation, is_binary=columns == 1)


def _inspect_loss(model: keras.Model) -> tuple[Activation | None, bool]:
    """Returns the activation that the loss applies to logits, and whether the model classifies."""
    losses = tf.nest.flatten(getattr(model, "loss", None))
    if len(losses) != 1 or losses[0] is None:
        return None, False
    try:
        loss = keras.losses.get(losses[0])
    except ValueError:
        return None, False
    if not isinstance(loss, keras.losses.Loss):
        return None, getattr(loss, "__name__", "") in _SCORE_LOSSES
    if not isinstance(loss, (*_SOFTMAX_LOSSES, *_SIGMOID_LOSSES)):
        return None, False
    is_logits = loss.get_config().get("from_logits", False)
    activation = tf.nn.softmax if isinstance(loss, _SOFTMAX_LOSSES) else tf.sigmoid
    return activation if is_logits else None, True
