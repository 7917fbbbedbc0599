"""Sequential, functional and subclassed models, compiled and fitted in the usual ways."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import layers, ops

from tests.structures.registry import (
    BATCH,
    BITS,
    CLASSES,
    IMAGES,
    NUMBERS,
    ROWS,
    WORDS,
    batches,
    cross_entropy,
    dense,
    structure,
)
from tests.structures.trial import Trial


@structure("tensorflow.org/tutorials/quickstart/beginner", "compile by names; evaluate, predict")
def quickstart(trial: Trial) -> None:
    with trial.scope():
        model = keras.Sequential(
            [layers.Flatten(input_shape=(8, 8, 2)), layers.Dense(6, "relu"), layers.Dense(3)]
        )
        model.compile(optimizer="adam", loss=cross_entropy(), metrics=["accuracy"])
    trial.fit(model, IMAGES, CLASSES, epochs=2, batch_size=BATCH)
    trial.evaluate(model, IMAGES, CLASSES)
    trial.predict(model, IMAGES)


@structure("keras.io/guides/functional_api", "dicts of inputs and outputs by names, loss weights")
def dicts_by_name(trial: Trial) -> None:
    with trial.scope():
        title = keras.Input((None,), name="title", dtype="int64")
        tags = keras.Input((5,), name="tags")
        encoded = layers.LSTM(4)(layers.Embedding(12, 4)(title))
        joined = layers.concatenate([encoded, tags])
        priority = layers.Dense(1, name="priority")(joined)
        department = layers.Dense(3, name="department")(joined)
        model = keras.Model(
            inputs=[title, tags], outputs={"priority": priority, "department": department}
        )
        model.compile(
            optimizer=keras.optimizers.RMSprop(1e-2),
            loss={
                "priority": keras.losses.BinaryCrossentropy(from_logits=True),
                "department": cross_entropy(),
            },
            loss_weights={"priority": 1.0, "department": 0.2},
        )
    x = {"title": WORDS, "tags": ROWS}
    y = {"priority": BITS, "department": CLASSES}
    trial.fit(model, x, y, epochs=2, batch_size=BATCH)


def two_inputs_two_outputs() -> keras.Model:
    image, series = keras.Input((8, 8, 2)), keras.Input((5,))
    joined = layers.concatenate([layers.Conv2D(2, 3)(image), layers.Conv2D(2, 3)(image)])
    joined = layers.concatenate([layers.GlobalMaxPooling2D()(joined), series])
    return keras.Model(
        [image, series], [layers.Dense(2, name="score")(joined), layers.Dense(3)(joined)]
    )


@structure(
    "keras.io/guides/training_with_built_in_methods",
    "lists of inputs, outputs, losses, metrics and sample weights; validation, evaluate, predict",
)
def lists_of_everything(trial: Trial) -> None:
    with trial.scope():
        model = two_inputs_two_outputs()
        model.compile(
            keras.optimizers.Adam(0.01),
            loss=[keras.losses.MeanSquaredError(), cross_entropy()],
            metrics=[[keras.metrics.MeanAbsoluteError()], ["accuracy"]],
            loss_weights=[2.0, 1.0],
        )
    validation = ([IMAGES[:9], ROWS[:9]], [NUMBERS[:9], CLASSES[:9]])
    trial.fit(
        model,
        [IMAGES, ROWS],
        [NUMBERS, CLASSES],
        epochs=2,
        batch_size=BATCH,
        validation_data=validation,
    )
    trial.evaluate(model, [IMAGES, ROWS], [NUMBERS, CLASSES], batch_size=BATCH)
    trial.predict(model, [IMAGES, ROWS])


@structure("keras.io/guides/training_with_built_in_methods", "validation_split of arrays")
def validation_split(trial: Trial) -> None:
    with trial.scope():
        model = dense(6, 3)
        model.compile("rmsprop", cross_entropy(), metrics=["sparse_categorical_accuracy"])
    trial.fit(model, ROWS, CLASSES, epochs=2, batch_size=BATCH, validation_split=0.3)


class Wide(keras.Model):
    """Made without shapes: it is built by its first batch."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = [layers.Dense(6, activation="relu") for _ in range(2)]
        self.last = layers.Dense(1)

    def call(self, inputs: Any, training: bool = False) -> Any:
        for block in self.blocks:
            inputs = block(inputs)
        return self.last(inputs)


@structure(
    "keras.io/guides/making_new_layers_and_models_via_subclassing", "built by the first batch"
)
def subclassed_and_not_built(trial: Trial) -> None:
    with trial.scope():
        model = Wide()
        model.compile("sgd", "mse", metrics=["mae"])
    trial.fit(model, batches(ROWS, NUMBERS[:, :1]), epochs=2)


@structure("keras.io/examples/structured_data/imbalanced_classification", "class_weight; metrics")
def class_weights(trial: Trial) -> None:
    with trial.scope():
        model = dense(8, 1, last="sigmoid")
        metrics = [
            keras.metrics.FalseNegatives(name="fn"),
            keras.metrics.Precision(name="precision"),
            keras.metrics.Recall(name="recall"),
            keras.metrics.AUC(name="auc"),
        ]
        model.compile(keras.optimizers.Adam(1e-2), "binary_crossentropy", metrics=metrics)
    data = (ROWS[:10], BITS[:10])
    options = {"class_weight": {0: 0.4, 1: 2.5}, "validation_data": data}
    trial.fit(model, ROWS, BITS, epochs=2, batch_size=BATCH, **options)


@structure("keras.io/guides/training_with_built_in_methods", "learning rate schedule, callbacks")
def schedule_and_callbacks(trial: Trial) -> None:
    rates: list[float] = []

    class Notes(keras.callbacks.Callback):
        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            rates.append(float(ops.convert_to_numpy(self.model.optimizer.learning_rate)))

    with trial.scope():
        schedule = keras.optimizers.schedules.ExponentialDecay(0.1, 2, 0.9, staircase=True)
        model = dense(6, 1)
        model.compile(keras.optimizers.SGD(schedule, momentum=0.9), "mse")
    trial.fit(model, ROWS, NUMBERS[:, :1], epochs=3, batch_size=BATCH, callbacks=[Notes()])
    trial.keep("rates", rates)


@structure(
    "keras.io/api/callbacks",
    "LearningRateScheduler, ReduceLROnPlateau, EarlyStopping that restores the best weights",
)
def callbacks_that_decide(trial: Trial) -> None:
    with trial.scope():
        model = dense(6, 1)
        model.compile(keras.optimizers.SGD(0.4, momentum=0.9), "mse")
    callbacks = [
        keras.callbacks.LearningRateScheduler(lambda epoch, rate: rate if epoch < 2 else rate / 2),
        keras.callbacks.ReduceLROnPlateau(monitor="val_loss", factor=0.5, patience=1),
        keras.callbacks.EarlyStopping(monitor="val_loss", patience=3, restore_best_weights=True),
    ]
    trial.fit(
        model,
        ROWS,
        NUMBERS[:, :1],
        epochs=8,
        batch_size=BATCH,
        validation_data=(ROWS[::2], -NUMBERS[::2, :1]),
        callbacks=callbacks,
    )


@structure(
    "keras.io/guides/writing_your_own_callbacks",
    "a callback that predicts at the end of an epoch, and one that reads the logs of batches",
)
def callback_predicts(trial: Trial) -> None:
    seen: list[Any] = []

    class Monitor(keras.callbacks.Callback):
        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            seen.append(float(logs["loss"]))

        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            seen.extend(self.model.predict(ROWS[:4], verbose=0)[:, 0])

    with trial.scope():
        model = dense(6, 1)
        model.compile("sgd", "mse")
    trial.fit(model, ROWS, NUMBERS[:, :1], epochs=2, batch_size=BATCH, callbacks=[Monitor()])
    trial.keep("seen", seen)


@structure(
    "keras.io/guides/transfer_learning",
    "frozen base with batch normalization, fit; unfrozen, compiled again, fit",
)
def fine_tuning(trial: Trial) -> None:
    with trial.scope():
        i = keras.Input((8, 8, 2))
        x = layers.BatchNormalization()(layers.Conv2D(4, 3, padding="same")(i))
        x = layers.add([layers.ReLU()(x), layers.Conv2D(4, 1)(i)])
        base = keras.Model(i, layers.MaxPooling2D()(x))
        base.trainable = False
        inputs = keras.Input((8, 8, 2))
        x = base(layers.Rescaling(2.0, offset=-1)(inputs), training=False)
        model = keras.Model(inputs, layers.Dense(1)(layers.GlobalAveragePooling2D()(x)))
        loss = keras.losses.BinaryCrossentropy(from_logits=True)
        model.compile(keras.optimizers.Adam(), loss, metrics=[keras.metrics.BinaryAccuracy()])
    trial.fit(model, batches(IMAGES, BITS), epochs=2)
    with trial.scope():
        base.trainable = True
        model.compile(keras.optimizers.Adam(1e-4), loss, metrics=[keras.metrics.BinaryAccuracy()])
    trial.fit(model, batches(IMAGES, BITS), epochs=1)
    trial.evaluate(model, batches(IMAGES, BITS))


@structure("keras.io/api/mixed_precision", "mixed_float16 and its loss scale", tolerance=2e-2)
def mixed_precision(trial: Trial) -> None:
    keras.config.set_floatx("float32")
    keras.mixed_precision.set_dtype_policy("mixed_float16")
    with trial.scope():
        inputs = keras.Input((5,))
        outputs = layers.Dense(3, dtype="float32")(layers.Dense(8, activation="relu")(inputs))
        model = keras.Model(inputs, outputs)
        model.compile(keras.optimizers.SGD(0.1), cross_entropy())
    trial.fit(model, ROWS, CLASSES, epochs=2, batch_size=BATCH)


@structure("tensorflow.org/tutorials/keras/overfit_and_underfit", "dropout", is_random=True)
def dropout(trial: Trial) -> None:
    class Noted(layers.Layer):
        def call(self, inputs: Any) -> Any:
            trial.note_draw(inputs)
            return inputs

    with trial.scope():
        hidden = [layers.Dropout(0.5), Noted(), layers.Dense(8), layers.Dropout(0.2)]
        model = keras.Sequential([layers.Input((40,)), *hidden, layers.Dense(1)])
        model.compile(keras.optimizers.Adam(0.05), "mse")
    ones = np.ones((len(ROWS), 40))
    trial.fit(model, ones, NUMBERS[:, :1] * 0 + 3, epochs=8, batch_size=BATCH)
