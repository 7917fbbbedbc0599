"""Ways of handing data to fit."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import layers

from tests.structures.registry import (
    BATCH,
    CLASSES,
    EXAMPLES,
    LENGTHS,
    NUMBERS,
    ROWS,
    WORDS,
    batches,
    cross_entropy,
    dense,
    structure,
)
from tests.structures.trial import Trial


def regression() -> keras.Model:
    model = dense(6, 2)
    model.compile(keras.optimizers.SGD(0.05), "mse", metrics=["mae"])
    return model


class Rows(keras.utils.PyDataset):
    """Batches by their index."""

    def __len__(self) -> int:
        return math.ceil(EXAMPLES / BATCH)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        part = slice(index * BATCH, (index + 1) * BATCH)
        return ROWS[part], NUMBERS[part]


@structure("keras.io/guides/training_with_built_in_methods", "keras.utils.PyDataset")
def py_dataset(trial: Trial) -> None:
    with trial.scope():
        model = regression()
    trial.fit(model, Rows(), epochs=2, shuffle=False, validation_data=Rows())
    trial.evaluate(model, Rows())
    trial.predict(model, Rows())


@structure("keras.io/api/models/model_training_apis", "a Python generator with steps_per_epoch")
def generator(trial: Trial) -> None:
    def forever() -> Iterator[Any]:
        while True:
            for i in range(0, EXAMPLES, BATCH):
                yield ROWS[i : i + BATCH], NUMBERS[i : i + BATCH]

    with trial.scope():
        model = regression()
    trial.fit(model, forever(), epochs=2, steps_per_epoch=3)


@structure("tensorflow.org/guide/data", "Dataset.from_generator, batched, of unknown length")
def dataset_from_generator(trial: Trial) -> None:
    def examples() -> Iterator[Any]:
        yield from zip(ROWS[:16], NUMBERS[:16], strict=True)

    specs = (tf.TensorSpec((5,), tf.float64), tf.TensorSpec((2,), tf.float64))
    with trial.scope():
        model = regression()
    dataset = tf.data.Dataset.from_generator(examples, output_signature=specs).batch(8)
    trial.fit(model, dataset.repeat(), epochs=2, steps_per_epoch=2)


@structure("keras.io/guides/training_with_built_in_methods", "sample_weight, and evaluate with it")
def sample_weights(trial: Trial) -> None:
    weights = np.where(CLASSES == 1, 2.0, 0.5)
    with trial.scope():
        model = dense(6, 3)
        model.compile("adam", cross_entropy(), metrics=["accuracy"], weighted_metrics=["accuracy"])
    trial.fit(model, ROWS, CLASSES, sample_weight=weights, epochs=2, batch_size=BATCH)
    trial.evaluate(model, ROWS, CLASSES, sample_weight=weights, batch_size=BATCH)


@structure("tensorflow.org/tutorials/load_data/pandas_dataframe", "tensors, to fit and predict")
def tensors(trial: Trial) -> None:
    with trial.scope():
        model = regression()
    trial.fit(model, tf.constant(ROWS), tf.constant(NUMBERS), epochs=2, batch_size=BATCH)
    trial.predict(model, tf.constant(ROWS), batch_size=BATCH)


@structure("tensorflow.org/guide/ragged_tensor", "ragged batches of a dataset")
def ragged_batches(trial: Trial) -> None:
    words = tf.RaggedTensor.from_tensor(WORDS, lengths=LENGTHS)
    dataset = tf.data.Dataset.from_tensor_slices((words, CLASSES)).ragged_batch(BATCH)
    with trial.scope():
        inputs = keras.Input((None,), dtype="int64", ragged=True)
        pooled = layers.GlobalAveragePooling1D()(layers.Embedding(12, 4)(inputs))
        model = keras.Model(inputs, layers.Dense(3)(pooled))
        model.compile("adam", cross_entropy())
    trial.fit(model, dataset, epochs=2)


@structure("tensorflow.org/guide/ragged_tensor", "ragged examples, padded in the dataset")
def ragged_made_dense(trial: Trial) -> None:
    words = tf.RaggedTensor.from_tensor(WORDS, lengths=LENGTHS)
    dataset = tf.data.Dataset.from_tensor_slices((words, CLASSES)).batch(BATCH)
    dataset = dataset.map(lambda x, y: (x.to_tensor(), y))
    with trial.scope():
        embedded = layers.Embedding(12, 4, mask_zero=True)
        model = keras.Sequential([embedded, layers.GRU(4), layers.Dense(3)])
        model.compile("adam", cross_entropy())
    trial.fit(model, dataset, epochs=2)


@structure("tensorflow.org/guide/sparse_tensor", "sparse features")
def sparse_batches(trial: Trial) -> None:
    sparse = tf.sparse.from_dense(np.where(ROWS > 0.3, ROWS, 0))
    with trial.scope():
        inputs = keras.Input((5,), sparse=True)
        model = keras.Model(inputs, layers.Dense(2)(inputs))
        model.compile("sgd", "mse")
    trial.fit(model, tf.data.Dataset.from_tensor_slices((sparse, NUMBERS)).batch(BATCH), epochs=2)


@structure("keras.io/examples/vision/autoencoder", "fit(x, x), and predict")
def targets_are_the_inputs(trial: Trial) -> None:
    with trial.scope():
        model = dense(2, 5)
        model.compile("adam", "mse")
    trial.fit(model, ROWS, ROWS, epochs=2, batch_size=BATCH, validation_data=(ROWS, ROWS))
    trial.predict(model, ROWS)


@structure("tensorflow.org/tutorials/distribute/keras", "cache, repeat, steps_per_epoch, prefetch")
def repeated_dataset(trial: Trial) -> None:
    dataset = tf.data.Dataset.from_tensor_slices((ROWS, NUMBERS)).cache().repeat().batch(BATCH)
    with trial.scope():
        model = regression()
    trial.fit(
        model,
        dataset.prefetch(tf.data.AUTOTUNE),
        epochs=2,
        steps_per_epoch=4,
        validation_data=batches(ROWS, NUMBERS),
    )


@structure("keras.io/examples/keras_recipes", "fit twice, and from initial_epoch")
def fitted_again(trial: Trial) -> None:
    with trial.scope():
        model = regression()
    trial.fit(model, ROWS, NUMBERS, epochs=1, batch_size=BATCH)
    trial.fit(model, ROWS[::-1], NUMBERS, epochs=3, initial_epoch=1, batch_size=BATCH)
