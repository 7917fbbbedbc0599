"""Keras 3: its own ``Model.fit``, in one process on TensorFlow or in several on JAX.

On JAX, processes connect to --address, all-reduce over gloo, and split every batch with
``keras.distribution.DataParallel``. On TensorFlow, Keras can't train on several workers.
"""

from __future__ import annotations

import argparse
import os

from benchmarks.measuring import EpochTimes, report
from benchmarks.peers.models import BATCH, EPOCHS, TASKS, arrays, build


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--task", choices=TASKS, required=True)
    parser.add_argument("--steps", type=int, required=True, help="in an epoch")
    parser.add_argument("--backend", choices=("jax", "tensorflow"), required=True)
    parser.add_argument("--address", help="of process 0")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--index", type=int, default=0)
    flags = parser.parse_args()
    os.environ["KERAS_BACKEND"] = flags.backend
    import keras

    if flags.workers > 1:
        import jax

        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.distributed.initialize(flags.address, flags.workers, flags.index)
        data_parallel = keras.distribution.DataParallel(auto_shard_dataset=False)
        keras.distribution.set_distribution(data_parallel)
    keras.utils.set_random_seed(0)  # has to be the same in all processes
    model = build(flags.task, keras)
    features, labels = arrays(flags.task, flags.steps * BATCH)
    times = EpochTimes()
    clock = keras.callbacks.LambdaCallback(on_epoch_end=times.record)
    model.fit(features, labels, batch_size=BATCH, epochs=EPOCHS, verbose=0, callbacks=[clock])
    report(step_s=times.step_s(flags.steps), parameters=model.count_params())


if __name__ == "__main__":
    main()
