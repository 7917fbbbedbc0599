"""The tasks: models and training lengths for every system, and the models in Keras.

This module imports no Keras: the caller passes its own.
"""

from __future__ import annotations

import dataclasses
from typing import Any

BATCH = 32  # examples per worker and step
EPOCHS = 4  # two of them warm up: compilers, allocators, tf.data's tuning
CLASSES = 10

VOCABULARY, TOKENS, WIDTH, HEADS, BLOCKS = 1000, 32, 384, 6, 6  # of the transformer
STAGES = ((64, 1), (128, 2), (256, 2), (512, 2))  # of the ResNet: filters and stride, 2 blocks each
WIDE = 2048  # of the MLP
CNN_FILTERS = (32, 64, 64)


@dataclasses.dataclass(frozen=True)
class Task:
    """A model to train.

    Args:
        shape: shape of an example.
        steps: updates in an epoch; an epoch then lasts about a second.
        slow_steps: the same for slow systems.
        optimizer: ``sgd`` or ``adam``, both with a learning rate of 1e-3.
    """

    shape: tuple[int, ...]
    steps: int
    slow_steps: int
    optimizer: str = "sgd"


TASKS = {
    "tiny": Task((32,), 4000, 400),
    "cnn": Task((32, 32, 3), 80, 20, "adam"),
    "mlp": Task((WIDE,), 20, 10),
    "transformer": Task((TOKENS,), 4, 2, "adam"),
    "resnet18": Task((32, 32, 3), 4, 2),
}
LEARNING_RATE = 1e-3


def arrays(name: str, examples: int) -> tuple[Any, Any]:
    """Returns noise for a task: features (float32, or int32 tokens) and int64 labels."""
    import numpy as np

    rng = np.random.default_rng(0)
    shape = (examples, *TASKS[name].shape)
    if name == "transformer":
        features: Any = rng.integers(0, VOCABULARY, shape).astype(np.int32)
    else:
        features = rng.random(shape, np.float32)
    return features, rng.integers(0, CLASSES, examples)


def build(name: str, keras: Any) -> Any:
    """Returns a task's model, compiled; ``keras`` is the module keras or tf_keras."""
    inputs = keras.layers.Input(
        TASKS[name].shape, dtype="int32" if name == "transformer" else "float32"
    )
    model = keras.Model(inputs, _BUILDERS[name](keras, inputs))
    optimizer = {"sgd": keras.optimizers.SGD, "adam": keras.optimizers.Adam}[TASKS[name].optimizer]
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer(LEARNING_RATE), loss, metrics=["accuracy"])
    return model


def _tiny(keras: Any, x: Any) -> Any:
    for _ in range(2):
        x = keras.layers.Dense(32, "relu")(x)
    return keras.layers.Dense(CLASSES)(x)


def _cnn(keras: Any, x: Any) -> Any:
    for filters in CNN_FILTERS:
        x = keras.layers.Conv2D(filters, 3, padding="same")(x)
        x = keras.layers.BatchNormalization()(x)
        x = keras.layers.MaxPooling2D()(keras.layers.ReLU()(x))
    x = keras.layers.Dense(37, "relu")(keras.layers.Flatten()(x))
    return keras.layers.Dense(CLASSES)(x)


def _mlp(keras: Any, x: Any) -> Any:
    for _ in range(4):
        x = keras.layers.Dense(WIDE, "relu")(x)
    return keras.layers.Dense(CLASSES)(x)


def _transformer(keras: Any, x: Any) -> Any:
    """Pre-normalized blocks of attention and two dense layers, then the mean over tokens."""
    x = keras.layers.Embedding(VOCABULARY, WIDTH)(x)
    for _ in range(BLOCKS):
        y = keras.layers.LayerNormalization()(x)
        x = x + keras.layers.MultiHeadAttention(HEADS, WIDTH // HEADS)(y, y)
        y = keras.layers.Dense(4 * WIDTH, "gelu")(keras.layers.LayerNormalization()(x))
        x = x + keras.layers.Dense(WIDTH)(y)
    x = keras.layers.GlobalAveragePooling1D()(keras.layers.LayerNormalization()(x))
    return keras.layers.Dense(CLASSES)(x)


def _resnet18(keras: Any, x: Any) -> Any:
    """ResNet-18 as in torchvision, with the usual stem for images of 32 by 32."""

    def convolve(x: Any, filters: int, size: int, stride: int) -> Any:
        layer = keras.layers.Conv2D(filters, size, stride, padding="same", use_bias=False)
        return keras.layers.BatchNormalization()(layer(x))

    x = keras.layers.ReLU()(convolve(x, 64, 3, 1))
    for filters, first_stride in STAGES:
        for stride in (first_stride, 1):
            y = keras.layers.ReLU()(convolve(x, filters, 3, stride))
            y = convolve(y, filters, 3, 1)
            if x.shape[-1] != filters:
                x = convolve(x, filters, 1, stride)
            x = keras.layers.ReLU()(x + y)
    return keras.layers.Dense(CLASSES)(keras.layers.GlobalAveragePooling2D()(x))


_BUILDERS = {
    "tiny": _tiny,
    "cnn": _cnn,
    "mlp": _mlp,
    "transformer": _transformer,
    "resnet18": _resnet18,
}
