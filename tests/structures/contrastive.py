"""Representations: losses over pairs of a batch, queues, averaged networks."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import layers, ops

import tfdp
from tests.structures.registry import (
    BATCH,
    CLASSES,
    ROWS,
    batches,
    cross_entropy,
    dense,
    structure,
)
from tests.structures.trial import Trial

VIEWS = ROWS + np.sin(ROWS[::-1])  # another view of each row
OTHERS = ROWS[::-1].copy()


def normalized(x: Any) -> Any:
    return ops.normalize(x, axis=1)


class Contrastive(keras.Model):
    """An encoder trained by pairs, and a probe of it with an optimizer of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.head = dense(6, 4), dense(4, 4, inputs=4)
        self.probe = keras.Sequential([keras.Input((4,)), layers.Dense(3)])

    def compile(self, contrastive_optimizer: Any, probe_optimizer: Any, **options: Any) -> None:
        super().compile(**options)
        self.contrastive_optimizer = contrastive_optimizer
        self.probe_optimizer = probe_optimizer
        self.probe_loss = cross_entropy()
        self.contrastive_loss_tracker = keras.metrics.Mean(name="c_loss")
        self.contrastive_accuracy = keras.metrics.SparseCategoricalAccuracy(name="c_acc")
        self.probe_loss_tracker = keras.metrics.Mean(name="p_loss")
        self.probe_accuracy = keras.metrics.SparseCategoricalAccuracy(name="p_acc")

    @property
    def metrics(self) -> Any:
        return [
            self.contrastive_loss_tracker,
            self.contrastive_accuracy,
            self.probe_loss_tracker,
            self.probe_accuracy,
        ]

    def contrastive_loss(self, first: Any, second: Any) -> Any:
        first, second = normalized(first), normalized(second)
        similarities = ops.matmul(first, ops.transpose(second)) / 0.1
        labels = ops.arange(ops.shape(first)[0])
        self.contrastive_accuracy.update_state(labels, similarities)
        self.contrastive_accuracy.update_state(labels, ops.transpose(similarities))
        loss_1_2 = keras.losses.sparse_categorical_crossentropy(
            labels, similarities, from_logits=True
        )
        loss_2_1 = keras.losses.sparse_categorical_crossentropy(
            labels, ops.transpose(similarities), from_logits=True
        )
        return (loss_1_2 + loss_2_1) / 2

    def train_step(self, data: Any) -> Any:
        (first, second), (labeled, labels) = data
        with tf.GradientTape() as tape:
            projections = [self.head(self.encoder(each, training=True)) for each in (first, second)]
            loss = self.contrastive_loss(*projections)
        weights = self.encoder.trainable_weights + self.head.trainable_weights
        self.contrastive_optimizer.apply_gradients(
            zip(tape.gradient(loss, weights), weights, strict=True)
        )
        self.contrastive_loss_tracker.update_state(loss)
        with tf.GradientTape() as tape:
            logits = self.probe(self.encoder(labeled, training=False))
            probe_loss = self.probe_loss(labels, logits)
        weights = self.probe.trainable_weights
        self.probe_optimizer.apply_gradients(
            zip(tape.gradient(probe_loss, weights), weights, strict=True)
        )
        self.probe_loss_tracker.update_state(probe_loss)
        self.probe_accuracy.update_state(labels, logits)
        return {metric.name: metric.result() for metric in self.metrics}

    def test_step(self, data: Any) -> Any:
        labeled, labels = data
        logits = self.probe(self.encoder(labeled, training=False), training=False)
        self.probe_loss_tracker.update_state(self.probe_loss(labels, logits))
        self.probe_accuracy.update_state(labels, logits)
        return {metric.name: metric.result() for metric in self.metrics[2:]}


def fit_contrastive(trial: Trial, kind: type[Contrastive]) -> None:
    with trial.scope():
        model = kind()
        model.compile(
            contrastive_optimizer=keras.optimizers.Adam(0.01),
            probe_optimizer=keras.optimizers.Adam(0.01),
        )
    data = batches((ROWS, VIEWS), (OTHERS, CLASSES))
    trial.fit(model, data, epochs=2, validation_data=batches(ROWS, CLASSES))


@structure(
    "keras.io/examples/vision/semisupervised_simclr",
    "similarities of all pairs of the batch, a second optimizer for a linear probe, test_step",
)
def simclr(trial: Trial) -> None:
    fit_contrastive(trial, Contrastive)


@structure("keras.io/examples/vision/semisupervised_simclr", "the same, from tfdp.all_gather")
def simclr_of_gathered_rows(trial: Trial) -> None:
    class Gathered(Contrastive):
        def contrastive_loss(self, first: Any, second: Any) -> Any:
            return ops.mean(
                super().contrastive_loss(tfdp.all_gather(first), tfdp.all_gather(second))
            )

    fit_contrastive(trial, Gathered)


@structure(
    "keras.io/examples/vision/nnclr", "a queue of features in a weight that train_step assigns"
)
def nnclr(trial: Trial) -> None:
    class Neighbours(Contrastive):
        def __init__(self) -> None:
            super().__init__()
            rows = keras.utils.normalize(np.sin(np.arange(48.0)).reshape(12, 4), axis=1)
            self.queue = keras.Variable(rows, trainable=False, name="queue")

        def nearest(self, x: Any) -> Any:
            scores = ops.matmul(x, ops.transpose(self.queue))
            found = ops.take(self.queue, ops.argmax(scores, axis=1), axis=0)
            return x + ops.stop_gradient(found - x)

        def contrastive_loss(self, first: Any, second: Any) -> Any:
            first, second = normalized(first), normalized(second)
            loss = super().contrastive_loss(self.nearest(first), second)
            joined = ops.concatenate([first, self.queue[: -ops.shape(first)[0]]], axis=0)
            self.queue.assign(ops.stop_gradient(joined))
            return loss

    fit_contrastive(trial, Neighbours)


class OfTwoViews(keras.Model):
    """Trains an encoder by a loss of two views of each row."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = dense(6, 4)
        self.loss_tracker = keras.metrics.Mean(name="loss")

    @property
    def metrics(self) -> Any:
        return [self.loss_tracker]

    def train_step(self, data: Any) -> Any:
        with tf.GradientTape() as tape:
            loss = self.of_views(*data)
        weights = self.trainable_variables
        self.optimizer.apply_gradients(zip(tape.gradient(loss, weights), weights, strict=True))
        self.loss_tracker.update_state(loss)
        self.after_update(*data)
        return {"loss": self.loss_tracker.result()}

    def of_views(self, first: Any, second: Any) -> Any:
        raise NotImplementedError

    def after_update(self, first: Any, second: Any) -> None: ...


def fit_two_views(trial: Trial, kind: type[OfTwoViews], size: int = BATCH) -> None:
    with trial.scope():
        model = kind()
        model.compile(optimizer=keras.optimizers.Adam(0.01))
    trial.fit(model, batches(ROWS, VIEWS, size=size), epochs=2)


class Momentum(OfTwoViews):
    """Has an averaged copy of the encoder, which train_step assigns."""

    def __init__(self) -> None:
        super().__init__()
        self.target = keras.models.clone_model(self.encoder)
        self.target.trainable = False

    def after_update(self, first: Any, second: Any) -> None:
        for own, average in zip(self.encoder.weights, self.target.weights, strict=True):
            average.assign(0.9 * average + 0.1 * own)


@structure("github.com/PaperCodeReview/MoCo-TF", "an averaged encoder fills a queue of keys")
def moco(trial: Trial) -> None:
    class WithQueue(Momentum):
        def __init__(self) -> None:
            super().__init__()
            rows = keras.utils.normalize(np.cos(np.arange(48.0)).reshape(12, 4), axis=1)
            self.queue = self.add_weight(
                shape=(12, 4), initializer=lambda *_, **__: ops.array(rows), trainable=False
            )

        def of_views(self, first: Any, second: Any) -> Any:
            queries, keys = normalized(self.encoder(first)), normalized(self.target(second))
            right = ops.sum(queries * keys, axis=1, keepdims=True)
            wrong = ops.matmul(queries, ops.transpose(self.queue))
            logits = ops.concatenate([right, wrong], axis=1) / 0.2
            labels = ops.zeros(ops.shape(logits)[0], "int32")
            losses = keras.losses.sparse_categorical_crossentropy(labels, logits, from_logits=True)
            return ops.mean(losses)

        def after_update(self, first: Any, second: Any) -> None:
            super().after_update(first, second)
            keys = normalized(self.target(second))
            self.queue.assign(ops.concatenate([keys, self.queue], axis=0)[:12])

    fit_two_views(trial, WithQueue)


@structure("arxiv.org/abs/2006.07733 (BYOL)", "an averaged encoder is the target")
def byol(trial: Trial) -> None:
    class Bootstrap(Momentum):
        def __init__(self) -> None:
            super().__init__()
            self.predictor = dense(4, 4, inputs=4)

        def of_views(self, first: Any, second: Any) -> Any:
            losses = 0.0
            for one, other in ((first, second), (second, first)):
                predicted = normalized(self.predictor(self.encoder(one)))
                target = ops.stop_gradient(normalized(self.target(other)))
                losses += 2 - 2 * ops.sum(predicted * target, axis=1)
            return ops.mean(losses)

    fit_two_views(trial, Bootstrap)


def cross_correlated(gather: Any) -> type[OfTwoViews]:
    """A loss that makes the features of two views alike, and those of one view unlike."""

    class Twins(OfTwoViews):
        def of_views(self, first: Any, second: Any) -> Any:
            sides = []
            for view in (first, second):
                z = gather(self.encoder(view))
                sides.append((z - ops.mean(z, axis=0)) / (ops.std(z, axis=0) + 1e-3))
            count = ops.cast(ops.shape(sides[0])[0], sides[0].dtype)
            correlation = ops.matmul(ops.transpose(sides[0]), sides[1]) / count
            weights = ops.eye(4) + 0.05 * (1 - ops.eye(4))
            return ops.sum(weights * (correlation - ops.eye(4)) ** 2)

    return Twins


@structure("keras.io/examples/vision/barlow_twins", "a cross-correlation over the batch")
def barlow_twins(trial: Trial) -> None:
    fit_two_views(trial, cross_correlated(lambda rows: rows))


@structure(
    "keras.io/examples/vision/barlow_twins", "the same, from tfdp.all_gather", tolerance=1e-7
)
def barlow_twins_of_gathered_rows(trial: Trial) -> None:
    fit_two_views(trial, cross_correlated(tfdp.all_gather))


@structure(
    "keras.io/examples/vision/supervised-contrastive-learning",
    "a subclass of Loss over all pairs of the batch",
)
def supervised_contrastive(trial: Trial) -> None:
    class Supervised(keras.losses.Loss):
        def __call__(self, labels: Any, features: Any, sample_weight: Any = None) -> Any:
            features = normalized(features)
            logits = ops.matmul(features, ops.transpose(features)) / 0.5
            same = ops.cast(labels[:, None] == labels[None], logits.dtype)
            same = same * (1 - ops.eye(ops.shape(logits)[0]))
            losses = ops.logsumexp(logits, axis=1, keepdims=True) - logits
            return ops.mean(ops.sum(same * losses, axis=1) / (ops.sum(same, axis=1) + 1e-6))

    with trial.scope():
        model = dense(6, 4)
        model.compile(keras.optimizers.Adam(0.01), loss=Supervised())
    trial.fit(model, ROWS, CLASSES, epochs=2, batch_size=BATCH)


@structure(
    "keras.io/examples/vision/metric_learning",
    "the batch is the second dimension of the data; compute_loss of classes of the batch",
)
def metric_learning(trial: Trial) -> None:
    class AnchorPositivePairs(keras.utils.PyDataset):
        def __len__(self) -> int:
            return 3

        def __getitem__(self, index: int) -> Any:
            return np.stack([ROWS[index * 6 : index * 6 + 6], VIEWS[index * 6 : index * 6 + 6]])

    class Embedding(keras.Model):
        def train_step(self, data: Any) -> Any:
            data = data[0] if isinstance(data, tuple) else data
            anchors, positives = data[0], data[1]
            with tf.GradientTape() as tape:
                similarities = ops.einsum(
                    "ae,pe->ap", self(anchors, training=True), self(positives, training=True)
                )
                labels = ops.arange(6)
                loss = self.compute_loss(y=labels, y_pred=similarities / 0.2)
            weights = self.trainable_variables
            self.optimizer.apply(tape.gradient(loss, weights), weights)
            for metric in self.metrics:
                if metric.name == "loss":
                    metric.update_state(loss)
                else:
                    metric.update_state(labels, similarities)
            return {metric.name: metric.result() for metric in self.metrics}

    with trial.scope():
        inputs = keras.Input((5,))
        outputs = layers.UnitNormalization()(layers.Dense(4)(inputs))
        model = Embedding(inputs, outputs)
        model.compile(keras.optimizers.Adam(0.01), cross_entropy())
    trial.fit(model, AnchorPositivePairs(), epochs=2, shuffle=False)


@structure(
    "keras.io/examples/vision/nl_image_search", "two encoders; softened similarities of the batch"
)
def dual_encoder(trial: Trial) -> None:
    class Dual(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.text_encoder, self.image_encoder = dense(6, 4), dense(5, 4)
            self.loss_tracker = keras.metrics.Mean(name="loss")

        @property
        def metrics(self) -> Any:
            return [self.loss_tracker]

        def call(self, features: Any, training: bool = False) -> Any:
            captions = self.text_encoder(features["caption"], training=training)
            return captions, self.image_encoder(features["image"], training=training)

        def compute_loss(self, captions: Any, images: Any) -> Any:
            logits = ops.matmul(captions, ops.transpose(images)) / 0.05
            likeness = ops.matmul(images, ops.transpose(images))
            likeness += ops.matmul(captions, ops.transpose(captions))
            targets = ops.softmax(likeness / 0.1)
            of_captions = keras.losses.categorical_crossentropy(targets, logits, from_logits=True)
            of_images = keras.losses.categorical_crossentropy(
                ops.transpose(targets), ops.transpose(logits), from_logits=True
            )
            return (of_captions + of_images) / 2

        def train_step(self, features: Any) -> Any:
            with tf.GradientTape() as tape:
                captions, images = self(features, training=True)
                loss = self.compute_loss(captions, images)
            weights = self.trainable_variables
            self.optimizer.apply_gradients(zip(tape.gradient(loss, weights), weights, strict=True))
            self.loss_tracker.update_state(loss)
            return {"loss": self.loss_tracker.result()}

        def test_step(self, features: Any) -> Any:
            captions, images = self(features, training=False)
            self.loss_tracker.update_state(self.compute_loss(captions, images))
            return {"loss": self.loss_tracker.result()}

    with trial.scope():
        model = Dual()
        model.compile(optimizer=keras.optimizers.AdamW(learning_rate=0.001, weight_decay=0.001))
    columns = {"caption": ROWS, "image": VIEWS}
    data = tf.data.Dataset.from_tensor_slices(columns).batch(BATCH)
    trial.fit(model, data, epochs=2, validation_data=data)


@structure(
    "keras.io/examples/vision/siamese_network", "a loss per triplet in train_step and test_step"
)
def triplets(trial: Trial) -> None:
    class Siamese(keras.Model):
        def __init__(self, network: keras.Model) -> None:
            super().__init__()
            self.network = network
            self.loss_tracker = keras.metrics.Mean(name="loss")

        def call(self, inputs: Any) -> Any:
            return self.network(inputs)

        def train_step(self, data: Any) -> Any:
            with tf.GradientTape() as tape:
                loss = self.of_triplets(data)
            weights = self.network.trainable_weights
            self.optimizer.apply_gradients(zip(tape.gradient(loss, weights), weights, strict=True))
            self.loss_tracker.update_state(loss)
            return {"loss": self.loss_tracker.result()}

        def test_step(self, data: Any) -> Any:
            self.loss_tracker.update_state(self.of_triplets(data))
            return {"loss": self.loss_tracker.result()}

        def of_triplets(self, data: Any) -> Any:
            near, far = self.network(data)
            return tf.maximum(near - far + 0.5, 0.0)

        @property
        def metrics(self) -> Any:
            return [self.loss_tracker]

    class Distances(layers.Layer):
        def call(self, anchor: Any, positive: Any, negative: Any) -> Any:
            return (
                ops.sum(ops.square(anchor - positive), -1),
                ops.sum(ops.square(anchor - negative), -1),
            )

    with trial.scope():
        embedding = dense(6, 4)
        inputs = [keras.Input((5,), name=name) for name in ("anchor", "positive", "negative")]
        outputs = Distances()(*[embedding(each) for each in inputs])
        model = Siamese(keras.Model(inputs, outputs))
        model.compile(optimizer=keras.optimizers.Adam(0.001))
    data = batches(ROWS, VIEWS, OTHERS)
    trial.fit(model, data, epochs=2, validation_data=data)


@structure(
    "keras.io/examples/vision/siamese_contrastive", "pairs, a loss function made by a function"
)
def contrastive_pairs(trial: Trial) -> None:
    def with_margin(margin: float) -> Any:
        def contrastive_loss(y: Any, distance: Any) -> Any:
            far = ops.square(ops.maximum(margin - distance, 0))
            return ops.mean((1 - y) * ops.square(distance) + y * far)

        return contrastive_loss

    def distance(pair: Any) -> Any:
        return ops.sqrt(ops.maximum(ops.sum(ops.square(pair[0] - pair[1]), 1, keepdims=True), 1e-7))

    with trial.scope():
        embedding = dense(6, 4)
        inputs = [keras.Input((5,)), keras.Input((5,))]
        joined = layers.Lambda(distance, output_shape=(1,))([embedding(each) for each in inputs])
        model = keras.Model(inputs, layers.Dense(1, activation="sigmoid")(joined))
        model.compile(loss=with_margin(1), optimizer="RMSprop", metrics=["accuracy"])
    labels = (CLASSES[:, None] > 0).astype(float)
    validation = ([ROWS, VIEWS], labels)
    trial.fit(model, [ROWS, VIEWS], labels, epochs=2, batch_size=BATCH, validation_data=validation)
