"""Keras 3 on JAX: ``Model.fit`` with ``keras.distribution.DataParallel`` over several processes.

JAX's processes come together at --address and all-reduce over gloo.
"""

from __future__ import annotations

import argparse
import os
import time

os.environ["KERAS_BACKEND"] = "jax"

import jax
import keras

from benchmarks.measuring import report
from benchmarks.peers.models import BATCH, EPOCHS, TASKS, arrays, build


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--task", choices=TASKS, required=True)
    parser.add_argument("--steps", type=int, required=True, help="in an epoch")
    parser.add_argument("--address", required=True)
    parser.add_argument("--workers", type=int, required=True)
    parser.add_argument("--index", type=int, required=True)
    flags = parser.parse_args()
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(flags.address, flags.workers, flags.index)
    keras.utils.set_random_seed(0)  # has to be the same everywhere
    keras.distribution.set_distribution(keras.distribution.DataParallel(auto_shard_dataset=False))
    model = build(flags.task, keras)
    features, labels = arrays(flags.task, flags.steps * BATCH)
    ends: list[float] = []
    clock = keras.callbacks.LambdaCallback(on_epoch_end=lambda *_: ends.append(time.perf_counter()))
    model.fit(features, labels, batch_size=BATCH, epochs=EPOCHS, verbose=0, callbacks=[clock])
    step_s = (ends[-1] - ends[1]) / (EPOCHS - 2) / flags.steps
    report(step_s=step_s, parameters=model.count_params())


if __name__ == "__main__":
    main()
