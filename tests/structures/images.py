"""Images: convolutions, batch normalization, augmentation, segmentation."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import layers, ops

from tests.structures.registry import (
    BATCH,
    BITS,
    CLASSES,
    IMAGES,
    batches,
    cross_entropy,
    structure,
)
from tests.structures.trial import Trial

PIXELS = (IMAGES.sum(axis=-1) > 1).astype("int64")[..., None]


@structure("keras.io/examples/vision/mnist_convnet", "convolutions, one-hot labels, evaluate")
def convolutional(trial: Trial) -> None:
    with trial.scope():
        model = keras.Sequential(
            [
                keras.Input((8, 8, 2)),
                layers.Conv2D(4, 3, activation="relu"),
                layers.MaxPooling2D(2),
                layers.Flatten(),
                layers.Dense(3, activation="softmax"),
            ]
        )
        model.compile("adam", "categorical_crossentropy", metrics=["accuracy"])
    trial.fit(model, IMAGES, np.eye(3)[CLASSES], epochs=2, batch_size=BATCH)
    trial.evaluate(model, IMAGES, np.eye(3)[CLASSES])


def with_normalization(**options: Any) -> keras.Model:
    inputs = keras.Input((8, 8, 2))
    x = layers.Conv2D(4, 3, strides=2, padding="same")(inputs)
    x = layers.Activation("relu")(layers.BatchNormalization(**options)(x))
    x = layers.SeparableConv2D(4, 3, padding="same")(x)
    x = layers.GlobalAveragePooling2D()(layers.BatchNormalization(**options)(x))
    model = keras.Model(inputs, layers.Dense(1)(x))
    loss = keras.losses.BinaryCrossentropy(from_logits=True)
    metrics = [keras.metrics.BinaryAccuracy(name="acc")]
    model.compile(keras.optimizers.Adam(3e-3), loss, metrics=metrics)
    return model


@structure("keras.io/examples/vision/image_classification_from_scratch", "batch normalization")
def batch_normalization(trial: Trial) -> None:
    with trial.scope():
        model = with_normalization()
    trial.fit(model, batches(IMAGES, BITS), epochs=2, validation_data=batches(IMAGES, BITS))


@structure(
    "tensorflow.org/api_docs/python/tf/keras/layers/BatchNormalization",
    "batch normalization with synchronized=True",
    tolerance=1e-8,
)
def batch_normalization_synchronized(trial: Trial) -> None:
    with trial.scope():
        model = with_normalization(synchronized=True)
    trial.fit(model, batches(IMAGES, BITS), epochs=2, validation_data=batches(IMAGES, BITS))


@structure(
    "tensorflow.org/tutorials/images/data_augmentation",
    "layers that flip, rotate and zoom, inside of the model",
    is_random=True,
)
def augmentation_layers(trial: Trial) -> None:
    class Noted(layers.Layer):
        def call(self, inputs: Any, training: bool = False) -> Any:
            if training:
                trial.note_draw(inputs)
            return inputs

    keras.config.set_floatx("float32")  # these layers of Keras 3.15 fail with float64
    keras.config.set_dtype_policy("float32")
    with trial.scope():
        model = keras.Sequential(
            [
                keras.Input((8, 8, 2)),
                layers.RandomFlip("horizontal_and_vertical"),
                layers.RandomRotation(0.2),
                layers.RandomZoom(0.2),
                Noted(),
                layers.Conv2D(4, 3, activation="relu"),
                layers.GlobalAveragePooling2D(),
                layers.Dense(1),
            ]
        )
        model.compile(keras.optimizers.Adam(0.05), "mse")
    same = np.repeat(IMAGES[:1], len(IMAGES), axis=0)
    trial.fit(model, same, BITS * 0 + 3, epochs=8, batch_size=BATCH)


@structure("keras.io/examples/vision/oxford_pets_image_segmentation", "U-Net, a class per pixel")
def segmentation(trial: Trial) -> None:
    with trial.scope():
        inputs = keras.Input((8, 8, 2))
        first = layers.Conv2D(3, 3, strides=2, padding="same", activation="relu")(inputs)
        x = layers.SeparableConv2D(4, 3, padding="same")(first)
        x = layers.MaxPooling2D(3, strides=2, padding="same")(x)
        x = layers.add([x, layers.Conv2D(4, 1, strides=2, padding="same")(first)])
        for size in (4, 3):
            x = layers.UpSampling2D(2)(layers.Conv2DTranspose(size, 3, padding="same")(x))
        model = keras.Model(inputs, layers.Conv2D(3, 3, activation="softmax", padding="same")(x))
        model.compile(keras.optimizers.Adam(1e-2), "sparse_categorical_crossentropy")
    trial.fit(model, batches(IMAGES, PIXELS), epochs=2, validation_data=batches(IMAGES, PIXELS))


@structure(
    "github.com/yingkaisha/keras-unet-collection", "a Dice loss function, over the whole batch"
)
def dice_of_the_batch(trial: Trial) -> None:
    def dice(y: Any, prediction: Any) -> Any:
        y, prediction = ops.ravel(ops.cast(y, prediction.dtype)), ops.ravel(prediction)
        both = ops.sum(y * prediction)
        return 1 - (2 * both + 1) / (ops.sum(y) + ops.sum(prediction) + 1)

    with trial.scope():
        hidden = layers.Conv2D(3, 3, padding="same", activation="relu")
        last = layers.Conv2D(1, 1, activation="sigmoid")
        model = keras.Sequential([keras.Input((8, 8, 2)), hidden, last])
        model.compile("adam", dice)
    trial.fit(model, batches(IMAGES, PIXELS), epochs=2)


@structure("keras.io/examples/vision/image_classification_with_vision_transformer", "patches")
def vision_transformer(trial: Trial) -> None:
    class Patches(layers.Layer):
        def call(self, images: Any) -> Any:
            patches = ops.image.extract_patches(images, 4)
            return ops.reshape(patches, (-1, 4, 4 * 4 * 2))

    class Encode(layers.Layer):
        def __init__(self) -> None:
            super().__init__()
            self.projection, self.places = layers.Dense(4), layers.Embedding(4, 4)

        def call(self, patches: Any) -> Any:
            return self.projection(patches) + self.places(ops.arange(4)[None])

    with trial.scope():
        inputs = keras.Input((8, 8, 2))
        x = Encode()(Patches()(inputs))
        normal = layers.LayerNormalization(epsilon=1e-6)(x)
        x = layers.Add()([layers.MultiHeadAttention(2, 2)(normal, normal), x])
        x = layers.Dense(6, activation="gelu")(layers.Flatten()(x))
        model = keras.Model(inputs, layers.Dense(3)(x))
        metrics = [
            keras.metrics.SparseCategoricalAccuracy(name="accuracy"),
            keras.metrics.SparseCategoricalCrossentropy(from_logits=True, name="cross-entropy"),
        ]
        optimizer = keras.optimizers.AdamW(learning_rate=0.001, weight_decay=0.0001)
        model.compile(optimizer, cross_entropy(), metrics=metrics)
    trial.fit(model, IMAGES, CLASSES, epochs=2, batch_size=BATCH)


@structure(
    "keras.io/api/layers/normalization_layers/spectral_normalization",
    "a weight that every training step assigns",
)
def spectral_normalization(trial: Trial) -> None:
    with trial.scope():
        spectral = layers.SpectralNormalization(layers.Conv2D(4, 3, activation="relu"))
        model = keras.Sequential(
            [keras.Input((8, 8, 2)), spectral, layers.GlobalAveragePooling2D(), layers.Dense(1)]
        )
        model.compile(keras.optimizers.SGD(0.1), "mse")
    trial.fit(model, IMAGES, BITS, epochs=2, batch_size=BATCH)


@structure(
    "keras.io/examples/vision/captcha_ocr",
    "an endpoint layer: add_loss of CTC, a value for each example, no compiled loss",
    tolerance=1e-4,
)
def ctc_endpoint(trial: Trial) -> None:
    class Endpoint(layers.Layer):
        def call(self, labels: Any, predictions: Any) -> Any:
            lengths = ops.ones_like(labels[:, 0], dtype="int32")
            losses = tf.nn.ctc_loss(
                tf.cast(labels, tf.int32),
                tf.math.log(tf.cast(predictions, tf.float32) + 1e-7),
                lengths * 3,
                lengths * 8,
                logits_time_major=False,
                blank_index=5,
            )
            self.add_loss(ops.cast(losses, predictions.dtype)[:, None])
            return predictions

    with trial.scope():
        images = keras.Input((8, 8, 2), name="image")
        labels = keras.Input((3,), name="label", dtype="int64")
        x = layers.Dense(4, activation="relu")(layers.Reshape((8, 16))(images))
        x = layers.Bidirectional(layers.LSTM(3, return_sequences=True))(x)
        outputs = Endpoint()(labels, layers.Dense(6, activation="softmax")(x))
        model = keras.Model([images, labels], outputs)
        model.compile(keras.optimizers.SGD(0.01))
    texts = np.stack([CLASSES, CLASSES + 1, (CLASSES + 2) % 5], axis=1)
    data = tf.data.Dataset.from_tensor_slices({"image": IMAGES, "label": texts}).batch(BATCH)
    trial.fit(model, data, epochs=2, validation_data=data)
