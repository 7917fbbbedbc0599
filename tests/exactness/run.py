"""Computes cases: ``python -m tests.exactness.run FOLDER CASE…``.

As a worker where TF_CONFIG says so; on ``REPLICAS`` replicas in this process where that variable is
set; else by plain Keras. Writes ``FOLDER/<case>.npz``: all that may be compared.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

import tfdp
from cluster.spec import from_environment
from tests.exactness import compile_cases, data_cases, models
from tests.exactness.registry import CASES, TOLERANCE, TOLERANCES, Case, precision

MODULES = (models, compile_cases, data_cases)  # they fill CASES


def tolerance(case: str) -> float:
    """How far two results of a case may be apart, relative."""
    return TOLERANCES.get(case, TOLERANCE)


def strategy_here() -> tf.distribute.Strategy | None:
    """The strategy to compute with, or None for plain Keras."""
    if from_environment() is not None:
        return tfdp.connect()
    replicas = int(os.environ.get("REPLICAS", "0"))
    if not replicas:
        return None
    tf.config.set_logical_device_configuration(
        tf.config.list_physical_devices("CPU")[0],
        [tf.config.LogicalDeviceConfiguration()] * replicas,
    )
    return tf.distribute.MirroredStrategy([f"CPU:{i}" for i in range(replicas)])


def compute(name: str, strategy: tf.distribute.Strategy | None) -> dict[str, np.ndarray]:
    """Trains, evaluates and maybe predicts; gives every number by name."""
    keras.utils.set_random_seed(5)
    with (strategy or tf.distribute.get_strategy()).scope():
        case = CASES[name]()
    model, arguments = case.model, case.fit
    shuffle = {} if isinstance(arguments["x"], tf.data.Dataset) else {"shuffle": False}
    if strategy is None:
        history = model.fit(**arguments, **shuffle, verbose=0)
    else:
        history = tfdp.fit(model, **arguments | case.tfdp, **shuffle, verbose=0)
    found: dict[str, Any] = {f"history/{key}": value for key, value in history.history.items()}
    weights = [*model.weights, *model.optimizer.variables]
    found |= {f"weights/{i:02d}": weight.numpy() for i, weight in enumerate(weights)}
    if case.evaluate:
        scores = evaluated(case, strategy)
        found |= {f"evaluate/{key}": value for key, value in scores.items()}
    if case.predict:
        found["predict"] = predicted(case, strategy)
    flat = tf.nest.flatten(found.pop("predict", []))
    found |= {f"predict/{i}": rows for i, rows in enumerate(flat)}
    return {key: np.asarray(value, np.float64) for key, value in found.items()}


def evaluated(case: Case, strategy: tf.distribute.Strategy | None) -> dict[str, float]:
    names = ("x", "y", "sample_weight", "batch_size")
    data = {name: case.fit[name] for name in names if name in case.fit}
    if "steps_per_epoch" in case.fit:
        data["steps"] = case.fit["steps_per_epoch"]
    if strategy is None:
        return case.model.evaluate(**data, verbose=0, return_dict=True)
    return tfdp.evaluate(case.model, **data)


def predicted(case: Case, strategy: tf.distribute.Strategy | None) -> Any:
    data = {name: case.fit[name] for name in ("x", "batch_size") if name in case.fit}
    if isinstance(data["x"], tf.data.Dataset):
        options = tf.data.Options()  # whose rows come in the dataset's order
        options.experimental_distribute.auto_shard_policy = (
            tf.data.experimental.AutoShardPolicy.DATA
        )
        data["x"] = data["x"].with_options(options)
    if strategy is None:
        return case.model.predict(**data, verbose=0)
    return tfdp.predict(case.model, **data)


def main(folder: Path, names: list[str]) -> None:
    strategy = strategy_here()
    folder.mkdir(parents=True)
    with precision("float64"):
        for name in names:
            print(f"case {name}", flush=True)
            np.savez(folder / f"{name}.npz", **compute(name, strategy))
            keras.backend.clear_session()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
