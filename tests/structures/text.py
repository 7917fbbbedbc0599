"""Text: strings, embeddings with masks, attention, sequences to sequences."""

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
    TEXTS,
    WORDS,
    batches,
    cross_entropy,
    structure,
)
from tests.structures.trial import Trial

VOCABULARY = 12
NEXT = np.concatenate([WORDS[:, 1:], np.zeros_like(WORDS[:, :1])], axis=1)


@structure(
    "keras.io/examples/nlp/text_classification_from_scratch",
    "TextVectorization in the model; an object array of strings",
)
def strings_to_model(trial: Trial) -> None:
    with trial.scope():
        vectorize = layers.TextVectorization(max_tokens=15, output_sequence_length=6)
        vectorize.adapt(TEXTS.astype(str))
        inputs = keras.Input((), dtype="string")
        x = layers.Embedding(15, 4)(vectorize(inputs))
        x = layers.GlobalMaxPooling1D()(layers.Conv1D(4, 3, activation="relu")(x))
        model = keras.Model(inputs, layers.Dense(1, activation="sigmoid")(x))
        model.compile("adam", "binary_crossentropy", metrics=["accuracy"])
    trial.fit(model, TEXTS, BITS, epochs=2, batch_size=BATCH)
    trial.predict(model, TEXTS)


@structure("tensorflow.org/tutorials/keras/text_classification", "TextVectorization in the dataset")
def strings_in_dataset(trial: Trial) -> None:
    with trial.scope():
        vectorize = layers.TextVectorization(max_tokens=15, output_sequence_length=6)
        vectorize.adapt(TEXTS.astype(str))
        pooled = [layers.Embedding(15, 4), layers.GlobalAveragePooling1D(), layers.Dense(1)]
        model = keras.Sequential(pooled)
        loss = keras.losses.BinaryCrossentropy(from_logits=True)
        model.compile("adam", loss, metrics=["accuracy"])
    dataset = batches(TEXTS.astype(str), BITS).map(lambda text, label: (vectorize(text), label))
    trial.fit(model, dataset.cache().prefetch(2), epochs=2, validation_data=dataset)


@structure("tensorflow.org/tutorials/text/text_classification_rnn", "mask_zero through two LSTMs")
def masked_bidirectional_lstm(trial: Trial) -> None:
    with trial.scope():
        model = keras.Sequential(
            [
                layers.Embedding(VOCABULARY, 4, mask_zero=True),
                layers.Bidirectional(layers.LSTM(3, return_sequences=True)),
                layers.Bidirectional(layers.LSTM(2)),
                layers.Dense(1),
            ]
        )
        model.compile("adam", keras.losses.BinaryCrossentropy(from_logits=True))
    trial.fit(model, WORDS, BITS, epochs=2, batch_size=BATCH)


class Positions(layers.Layer):
    """Embeds words and their places; hands the mask of padding on."""

    def __init__(self, size: int = 4) -> None:
        super().__init__()
        self.words = layers.Embedding(VOCABULARY, size, mask_zero=True)
        self.places = layers.Embedding(8, size)

    def call(self, inputs: Any) -> Any:
        return self.words(inputs) + self.places(ops.arange(0, ops.shape(inputs)[-1]))

    def compute_mask(self, inputs: Any, mask: Any = None) -> Any:
        return self.words.compute_mask(inputs)


class Encoder(layers.Layer):
    """A block of a transformer."""

    def __init__(self, is_causal: bool = False) -> None:
        super().__init__()
        self.supports_masking = True
        self.is_causal = is_causal
        self.attention = layers.MultiHeadAttention(2, 2)
        self.further = keras.Sequential([layers.Dense(6, activation="relu"), layers.Dense(4)])
        self.norms = [layers.LayerNormalization(epsilon=1e-6) for _ in range(2)]

    def call(self, inputs: Any) -> Any:
        attended = self.attention(inputs, inputs, use_causal_mask=self.is_causal)
        middle = self.norms[0](inputs + attended)
        return self.norms[1](middle + self.further(middle))


@structure("keras.io/examples/nlp/text_classification_with_transformer", "layers of one's own")
def transformer_encoder(trial: Trial) -> None:
    with trial.scope():
        inputs = keras.Input((6,), dtype="int64")
        x = layers.GlobalAveragePooling1D()(Encoder()(Positions()(inputs)))
        model = keras.Model(inputs, layers.Dense(3, activation="softmax")(x))
        model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    trial.fit(model, WORDS, CLASSES, epochs=2, batch_size=BATCH, validation_data=(WORDS, CLASSES))


@structure("keras.io/examples/nlp/lstm_seq2seq", "a list of inputs, states handed to a decoder")
def sequence_to_sequence(trial: Trial) -> None:
    with trial.scope():
        source, target = keras.Input((None, VOCABULARY)), keras.Input((None, VOCABULARY))
        _, *states = layers.LSTM(4, return_state=True)(source)
        decoded, _, _ = layers.LSTM(4, return_sequences=True, return_state=True)(
            target, initial_state=states
        )
        outputs = layers.Dense(VOCABULARY, activation="softmax")(decoded)
        model = keras.Model([source, target], outputs)
        model.compile("rmsprop", "categorical_crossentropy", metrics=["accuracy"])
    source_rows, target_rows, next_rows = (
        np.eye(VOCABULARY)[each] for each in (WORDS, WORDS, NEXT)
    )
    trial.fit(model, [source_rows, target_rows], next_rows, batch_size=BATCH, epochs=2)


@structure(
    "keras.io/examples/nlp/neural_machine_translation_with_transformer",
    "a dict of inputs, masks of padding and of the future that reach the loss",
)
def translation_with_masks(trial: Trial) -> None:
    with trial.scope():
        source = keras.Input((None,), dtype="int64", name="encoder_inputs")
        target = keras.Input((None,), dtype="int64", name="decoder_inputs")
        encoded = Encoder()(Positions()(source))
        x = Encoder(is_causal=True)(Positions()(target))
        x = layers.add([x, layers.MultiHeadAttention(2, 2)(query=x, value=encoded, key=encoded)])
        model = keras.Model([source, target], layers.Dense(VOCABULARY, activation="softmax")(x))
        loss = keras.losses.SparseCategoricalCrossentropy(ignore_class=0)
        model.compile("rmsprop", loss, metrics=["accuracy"])
    data = batches({"encoder_inputs": WORDS, "decoder_inputs": WORDS[::-1].copy()}, NEXT[::-1])
    trial.fit(model, data, epochs=2, validation_data=data)


@structure(
    "keras.io/examples/generative/text_generation_with_miniature_gpt",
    "two outputs, one loss of two",
)
def causal_language_model(trial: Trial) -> None:
    with trial.scope():
        inputs = keras.Input((6,), dtype="int64")
        x = Encoder(is_causal=True)(Positions()(inputs))
        model = keras.Model(inputs, [layers.Dense(VOCABULARY)(x), x])
        model.compile("adam", loss=[cross_entropy(), None])
    trial.fit(model, batches(WORDS, NEXT), epochs=2)


@structure(
    "tensorflow.org/tutorials/text/nmt_with_attention",
    "loss and metric functions that divide by the number of words in the batch",
)
def loss_function_with_mask(trial: Trial) -> None:
    def masked_loss(y: Any, logits: Any) -> Any:
        losses = cross_entropy(reduction="none")(y, logits)
        mask = tf.cast(y != 0, losses.dtype)
        return tf.reduce_sum(losses * mask) / tf.reduce_sum(mask)

    def masked_accuracy(y: Any, logits: Any) -> Any:
        right = tf.cast(tf.argmax(logits, -1) == tf.cast(y, tf.int64), logits.dtype)
        mask = tf.cast(y != 0, logits.dtype)
        return tf.reduce_sum(right * mask) / tf.reduce_sum(mask)

    with trial.scope():
        model = keras.Sequential(
            [
                layers.Embedding(VOCABULARY, 4),
                layers.GRU(4, return_sequences=True),
                layers.Dense(12),
            ]
        )
        model.compile("adam", masked_loss, metrics=[masked_accuracy, masked_loss])
    trial.fit(model, batches(WORDS, NEXT), epochs=2)


@structure(
    "keras.io/examples/nlp/ner_transformers",
    "a subclass of Loss whose call gives one number, a mean over words that are no padding",
)
def loss_class_with_mask(trial: Trial) -> None:
    class OfWords(keras.losses.Loss):
        def call(self, y: Any, logits: Any) -> Any:
            losses = ops.sparse_categorical_crossentropy(y, logits, from_logits=True)
            mask = ops.cast(y > 0, losses.dtype)
            return ops.sum(losses * mask) / ops.sum(mask)

    with trial.scope():
        model = keras.Sequential([layers.Embedding(VOCABULARY, 4), layers.Dense(VOCABULARY)])
        model.compile("adam", OfWords())
    trial.fit(model, batches(WORDS, WORDS % 3), epochs=2)


@structure(
    "tensorflow.org/tutorials/text/text_generation", "train_step that returns self.loss's value"
)
def train_step_with_compiled_loss(trial: Trial) -> None:
    class Generator(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = layers.Embedding(VOCABULARY, 4)
            self.gru = layers.GRU(4, return_sequences=True, return_state=True)
            self.last = layers.Dense(VOCABULARY)

        def call(self, inputs: Any, states: Any = None, training: bool = False) -> Any:
            x, _ = self.gru(self.embedding(inputs), initial_state=states, training=training)
            return self.last(x)

        def train_step(self, data: Any) -> Any:
            inputs, labels = data
            with tf.GradientTape() as tape:
                predictions = self(inputs, training=True)
                loss = self.loss(labels, predictions)
            gradients = tape.gradient(loss, self.trainable_variables)
            self.optimizer.apply_gradients(zip(gradients, self.trainable_variables, strict=True))
            return {"loss": loss}

    with trial.scope():
        model = Generator()
        model.compile("adam", loss=cross_entropy())
    trial.fit(model, batches(WORDS, NEXT), epochs=2)


@structure(
    "keras.io/examples/nlp/masked_language_modeling",
    "train_step with sample weights and a tracker of its own, weighted too",
)
def masked_language_model(trial: Trial) -> None:
    loss_fn = keras.losses.SparseCategoricalCrossentropy(reduction=None)

    class MaskedModel(keras.Model):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            self.loss_tracker = keras.metrics.Mean(name="loss")

        def train_step(self, inputs: Any) -> Any:
            features, labels, sample_weight = inputs
            with tf.GradientTape() as tape:
                predictions = self(features, training=True)
                loss = loss_fn(labels, predictions, sample_weight=sample_weight)
            variables = self.trainable_variables
            self.optimizer.apply_gradients(
                zip(tape.gradient(loss, variables), variables, strict=True)
            )
            self.loss_tracker.update_state(loss, sample_weight=sample_weight)
            return {"loss": self.loss_tracker.result()}

        @property
        def metrics(self) -> Any:
            return [self.loss_tracker]

    with trial.scope():
        inputs = keras.Input((6,), dtype="int64")
        outputs = layers.Dense(VOCABULARY, activation="softmax")(Encoder()(Positions()(inputs)))
        model = MaskedModel(inputs, outputs)
        model.compile(keras.optimizers.Adam(0.01))
    chosen = (WORDS % 3 == 1).astype(float)
    trial.fit(model, batches(np.where(chosen > 0, 11, WORDS), WORDS, chosen), epochs=2)


@structure("tensorflow.org/tutorials/text/word2vec", "features are a tuple of two, einsum")
def word_to_vector(trial: Trial) -> None:
    class Word2Vec(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.target = layers.Embedding(VOCABULARY, 3)
            self.context = layers.Embedding(VOCABULARY, 3)

        def call(self, pair: Any) -> Any:
            target, context = pair
            return tf.einsum("be,bce->bc", self.target(target[:, 0]), self.context(context))

    with trial.scope():
        model = Word2Vec()
        loss = keras.losses.CategoricalCrossentropy(from_logits=True)
        model.compile("adam", loss, metrics=["accuracy"])
    labels = np.eye(5)[np.zeros(len(WORDS), int)]
    trial.fit(model, batches((WORDS[:, :1], WORDS[:, 1:]), labels), epochs=2)
