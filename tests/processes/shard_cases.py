"""What two workers do with data that may not fit them: ``python shard_cases.py DATA RESULTS``.

``DATA`` has the folders ``one``, ``even`` and ``uneven``. Each worker writes what came out to
``RESULTS/<worker>.json``.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

import tfdp
from cluster.spec import from_environment

strategy = tfdp.connect()


def parse(record: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    number = tf.reshape(tf.strings.to_number(tf.strings.split(record, " ")[0]), [1])
    return number, 0 * number


def model() -> keras.Model:
    """Its mean absolute error is the mean of the records' numbers."""
    with strategy.scope():
        layers = [keras.layers.Input((1,)), keras.layers.Dense(1, kernel_initializer="ones")]
        made = keras.Sequential(layers)
        made.compile(keras.optimizers.SGD(0.0), "mse", metrics=["mae"])
    return made


def outcome(data: Path, files: str, policy: str) -> Any:
    options = tf.data.Options()
    options.experimental_distribute.auto_shard_policy = getattr(
        tf.data.experimental.AutoShardPolicy, policy
    )
    paths = sorted(map(str, (data / files).iterdir()))
    dataset = tf.data.TFRecordDataset(paths).map(parse).batch(4).with_options(options)
    found = []
    for work in (
        lambda: tfdp.fit(model(), dataset, verbose=0).history["mae"][0],
        lambda: tfdp.evaluate(model(), dataset)["mae"],
    ):
        try:
            found.append(work())
        except tfdp.BadInput as error:
            found.append(str(error))
    return found


def another_length() -> str:
    """A source of which the second worker lacks an example."""
    examples = 9 if tfdp.is_chief() else 8
    source = tfdp.from_arrays(np.zeros((examples, 1)), np.zeros(examples))
    try:
        tfdp.fit(model(), source, batch_size=4, verbose=0)
    except tfdp.BadInput as error:
        return str(error)
    return "not refused"


if __name__ == "__main__":
    data, results = map(Path, sys.argv[1:])
    cluster = from_environment()
    assert cluster is not None
    outcomes = {
        f"{files} {policy}": outcome(data, files, policy)
        for files, policy in (
            ("one", "FILE"),
            ("one", "AUTO"),
            ("uneven", "FILE"),
            ("uneven", "AUTO"),
            ("even", "FILE"),
        )
    }
    outcomes["another length"] = another_length()
    (results / f"{cluster.index}.json").write_text(json.dumps(outcomes))
