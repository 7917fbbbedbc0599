"""What workers predict into folders by ``tfdp.predict(output=…)``, and what they refuse.

``python predict_cases.py FOLDER`` writes folders of predictions, and the messages of what is
refused into ``FOLDER/refused-<worker>.json``.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

import tfdp
from cluster.spec import from_environment
from tfdp.trainer import prediction_folder

ROWS = np.random.default_rng(0).normal(size=(53, 5)).astype(np.float32)


def make_model() -> keras.Model:
    """A model that draws when it predicts, as for an estimate of its uncertainty."""
    inputs = keras.Input((5,))
    hidden = AlwaysDropout(0.5, seed=1)(keras.layers.Dense(8)(inputs))
    return keras.Model(inputs, [keras.layers.Dense(3)(hidden), hidden])


class AlwaysDropout(keras.layers.Dropout):
    """Drops units in prediction, too."""

    def call(self, inputs: Any, training: bool = False) -> Any:
        return super().call(inputs, training=True)


class Centered(keras.Model):
    """Rows that depend on all others: no worker can compute them alone."""

    def predict_step(self, data: Any) -> tf.Tensor:
        context = tf.distribute.get_replica_context()
        return data - context.all_reduce("mean", tf.reduce_mean(data, axis=0))


def batches() -> Iterator[tuple[np.ndarray]]:
    for start in range(0, len(ROWS), 8):
        yield (ROWS[start : start + 8],)


def predict(strategy: tf.distribute.Strategy, folder: Path) -> None:
    keras.utils.set_random_seed(3)
    with strategy.scope():
        model = make_model()
    for format in ("npz", "tfrecord", "jsonl"):
        tfdp.predict(model, ROWS, batch_size=8, output=folder / format, format=format)
    tfdp.predict(model, batches(), output=folder / "generator", batches_per_part=2)


def main(folder: Path) -> None:
    cluster = from_environment()
    worker = 0 if cluster is None else cluster.index
    prediction_folder._SEEN_WITHIN_S = 2
    strategy = tfdp.connect()
    predict(strategy, folder)
    with strategy.scope():
        model, centered = make_model(), Centered()
    own = folder / f"of-{worker}"
    unlike = tf.data.Dataset.from_tensor_slices(ROWS + worker).batch(8)
    cases: dict[str, Any] = {
        "not_shared": lambda: tfdp.predict(model, ROWS, output=own),
        "other_datasets": lambda: tfdp.predict(model, unlike, output=folder / "x"),
        "an_exchange": lambda: tfdp.predict(centered, ROWS, output=folder / "y"),
    }
    refused = {}
    for name, case in cases.items():
        try:
            case()
        except tfdp.BadInput as error:
            refused[name] = str(error)
    (folder / f"refused-{worker}.json").write_text(json.dumps(refused))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
