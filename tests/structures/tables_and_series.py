"""Tables, recommendations and time series."""

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
    EXAMPLES,
    NUMBERS,
    ROWS,
    SERIES,
    batches,
    cross_entropy,
    structure,
)
from tests.structures.trial import Trial

KINDS = np.array(["fixed", "normal", "reversible"], dtype=object)[CLASSES]
AGES = np.arange(EXAMPLES) % 7 + 20
PEOPLE = {"age": ROWS[:, :1], "years": AGES[:, None], "thal": KINDS[:, None]}


@structure(
    "keras.io/examples/structured_data/structured_data_classification_from_scratch",
    "a dict of columns; lookups and a normalization in the model, adapted before",
)
def structured_data(trial: Trial) -> None:
    with trial.scope():
        inputs = {
            "age": keras.Input((1,), name="age"),
            "years": keras.Input((1,), name="years", dtype="int64"),
            "thal": keras.Input((1,), name="thal", dtype="string"),
        }
        normalization = layers.Normalization()
        normalization.adapt(PEOPLE["age"])
        kinds = layers.StringLookup(output_mode="multi_hot")
        kinds.adapt(PEOPLE["thal"])
        years = layers.IntegerLookup(output_mode="multi_hot")
        years.adapt(PEOPLE["years"])
        parts = [
            normalization(inputs["age"]),
            years(inputs["years"]),
            kinds(inputs["thal"]),
        ]
        x = layers.Dense(6, activation="relu")(layers.concatenate(parts))
        model = keras.Model(list(inputs.values()), layers.Dense(1, activation="sigmoid")(x))
        model.compile("adam", "binary_crossentropy", metrics=["accuracy"])
    trial.fit(model, batches(PEOPLE, BITS), epochs=2, validation_data=batches(PEOPLE, BITS))
    trial.predict(model, batches(PEOPLE))


@structure(
    "keras.io/examples/structured_data/structured_data_classification_with_feature_space",
    "keras.utils.FeatureSpace in the dataset",
)
def feature_space(trial: Trial) -> None:
    space = keras.utils.FeatureSpace(
        features={
            "age": keras.utils.FeatureSpace.float_normalized(),
            "thal": keras.utils.FeatureSpace.string_categorical(num_oov_indices=0),
            "years": keras.utils.FeatureSpace.integer_categorical(num_oov_indices=1),
        },
        output_mode="concat",
    )
    columns = {"age": ROWS[:, 0], "years": AGES, "thal": KINDS}
    space.adapt(tf.data.Dataset.from_tensor_slices(columns))
    dataset = batches(columns, BITS).map(lambda x, y: (space(x), y))
    with trial.scope():
        encoded = space.get_encoded_features()
        x = layers.Dense(6, activation="relu")(encoded)
        model = keras.Model(encoded, layers.Dense(1, activation="sigmoid")(x))
        model.compile("adam", "binary_crossentropy")
    trial.fit(model, dataset, epochs=2)


@structure(
    "keras.io/examples/structured_data/wide_deep_cross_networks", "wide, deep and crossed features"
)
def wide_and_deep(trial: Trial) -> None:
    with trial.scope():
        numbers = keras.Input((5,), name="numbers")
        kind = keras.Input((), name="kind", dtype="string")
        ids = layers.StringLookup(vocabulary=sorted(set(KINDS)), num_oov_indices=0)(kind)
        wide = layers.CategoryEncoding(num_tokens=3, output_mode="one_hot")(ids)
        both = layers.concatenate([numbers, layers.Embedding(3, 2)(ids)])
        crossed = both * layers.Dense(7)(both) + both
        deep = layers.Dense(6, activation="relu")(both)
        outputs = layers.Dense(3, activation="softmax")(layers.concatenate([wide, crossed, deep]))
        model = keras.Model({"numbers": numbers, "kind": kind}, outputs)
        metrics = [keras.metrics.SparseCategoricalAccuracy()]
        model.compile("adam", "sparse_categorical_crossentropy", metrics=metrics)
    trial.fit(model, {"numbers": ROWS, "kind": KINDS}, CLASSES, epochs=2, batch_size=BATCH)


class Recommender(keras.Model):
    """Vectors of users and movies, and how well they fit."""

    def __init__(self, is_of_the_batch: bool) -> None:
        super().__init__()
        options = {"embeddings_initializer": "he_normal", "embeddings_regularizer": "l2"}
        self.users, self.movies = (layers.Embedding(7, 3, **options) for _ in range(2))
        self.user_bias, self.movie_bias = (layers.Embedding(7, 1) for _ in range(2))
        self.is_of_the_batch = is_of_the_batch

    def call(self, inputs: Any) -> Any:
        user, movie = inputs[:, 0], inputs[:, 1]
        vectors = self.users(user), self.movies(movie)
        if self.is_of_the_batch:
            fit = ops.tensordot(*vectors, 2)
        else:
            fit = ops.sum(vectors[0] * vectors[1], axis=1, keepdims=True)
        return ops.sigmoid(fit + self.user_bias(user) + self.movie_bias(movie))


PAIRS = np.stack([AGES - 20, (AGES * 3) % 7], axis=1)


@structure(
    "keras.io/examples/structured_data/collaborative_filtering_movielens",
    "embeddings with regularizers, a subclassed model",
)
def matrix_factorization(trial: Trial) -> None:
    with trial.scope():
        model = Recommender(is_of_the_batch=False)
        model.compile(keras.optimizers.Adam(0.01), keras.losses.BinaryCrossentropy())
    trial.fit(model, PAIRS, BITS, epochs=2, batch_size=BATCH, validation_data=(PAIRS, BITS))


@structure(
    "keras.io/examples/structured_data/collaborative_filtering_movielens",
    "as published: tensordot(user, movie, 2), one number from all of the batch",
)
def tensordot_of_the_batch(trial: Trial) -> None:
    with trial.scope():
        model = Recommender(is_of_the_batch=True)
        model.compile(keras.optimizers.Adam(0.01), keras.losses.BinaryCrossentropy())
    trial.fit(model, PAIRS, BITS, epochs=2, batch_size=BATCH)


@structure(
    "tensorflow.org/recommenders/examples/basic_retrieval",
    "two towers; every other example of the batch is a negative one (compute_loss)",
)
def two_towers(trial: Trial) -> None:
    class Towers(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.users, self.movies = layers.Embedding(7, 3), layers.Embedding(7, 3)
            self.task = keras.losses.CategoricalCrossentropy(from_logits=True, reduction="sum")

        def call(self, pairs: Any) -> Any:
            return self.users(pairs[:, 0]), self.movies(pairs[:, 1])

        def compute_loss(
            self, x: Any = None, y: Any = None, y_pred: Any = None, *_: Any, **__: Any
        ) -> Any:
            users, movies = y_pred
            scores = ops.matmul(users, ops.transpose(movies))
            return self.task(ops.eye(ops.shape(scores)[0]), scores)

    with trial.scope():
        model = Towers()
        model.compile(keras.optimizers.Adagrad(0.1))
    trial.fit(model, batches(PAIRS, BITS), epochs=2)


@structure(
    "tensorflow.org/tutorials/structured_data/time_series",
    "timeseries_dataset_from_array, LSTM, early stopping",
)
def windows_of_a_series(trial: Trial) -> None:
    flat = SERIES.reshape(-1, 3)[:40]
    dataset = keras.utils.timeseries_dataset_from_array(
        flat[:-5], flat[5:, :1], sequence_length=5, batch_size=BATCH
    )
    with trial.scope():
        model = keras.Sequential([layers.LSTM(4, return_sequences=False), layers.Dense(1)])
        model.compile(keras.optimizers.Adam(), keras.losses.MeanSquaredError(), metrics=["mae"])
    stop = keras.callbacks.EarlyStopping(monitor="val_loss", patience=2, mode="min")
    trial.fit(model, dataset, epochs=2, validation_data=dataset, callbacks=[stop])


@structure(
    "keras.io/examples/timeseries/timeseries_weather_forecasting", "GRU, checkpoint, callbacks"
)
def gru_of_arrays(trial: Trial) -> None:
    with trial.scope():
        inputs = keras.Input((6, 3))
        x = layers.GRU(3)(layers.GRU(4, return_sequences=True)(inputs))
        model = keras.Model(inputs, layers.Dense(2)(x))
        model.compile(keras.optimizers.Adam(learning_rate=0.01), loss="mse")
    trial.fit(model, SERIES, NUMBERS, epochs=2, batch_size=BATCH)
    trial.predict(model, SERIES, batch_size=BATCH)


@structure("keras.io/guides/working_with_rnns", "a stateful LSTM, whose rows follow each other")
def stateful_lstm(trial: Trial) -> None:
    with trial.scope():
        recurrent = layers.LSTM(3, stateful=True)
        model = keras.Sequential([keras.Input(batch_shape=(6, 6, 3)), recurrent, layers.Dense(2)])
        model.compile("adam", "mse")
    trial.fit(model, SERIES[:18], NUMBERS[:18], epochs=2, batch_size=6)


@structure("keras.io/guides/working_with_rnns", "a recurrent cell of one's own")
def cell_of_ones_own(trial: Trial) -> None:
    class Cell(layers.Layer):
        def __init__(self) -> None:
            super().__init__()
            self.state_size = self.output_size = 4
            self.mix = layers.Dense(4, activation="tanh")

        def build(self, shape: Any) -> None:
            self.mix.build((None, shape[-1] + 4))

        def call(self, inputs: Any, states: Any) -> Any:
            state = self.mix(ops.concatenate([inputs, states[0]], axis=-1))
            return state, [state]

    with trial.scope():
        model = keras.Sequential([keras.Input((6, 3)), layers.RNN(Cell()), layers.Dense(3)])
        model.compile("adam", cross_entropy(), metrics=["accuracy"])
    trial.fit(model, SERIES, CLASSES, epochs=2, batch_size=BATCH)


@structure(
    "keras.io/examples/timeseries/timeseries_anomaly_detection",
    "convolutional autoencoder, validation_split, early stopping",
)
def anomaly_detection(trial: Trial) -> None:
    with trial.scope():
        model = keras.Sequential(
            [
                keras.Input((6, 3)),
                layers.Conv1D(4, 3, padding="same", strides=2, activation="relu"),
                layers.Conv1DTranspose(4, 3, padding="same", strides=2, activation="relu"),
                layers.Conv1DTranspose(3, 3, padding="same"),
            ]
        )
        model.compile(keras.optimizers.Adam(learning_rate=0.001), loss="mse")
    stop = keras.callbacks.EarlyStopping(monitor="val_loss", patience=5, mode="min")
    options = {"validation_split": 0.2, "callbacks": [stop]}
    trial.fit(model, SERIES, SERIES, epochs=2, batch_size=BATCH, **options)
