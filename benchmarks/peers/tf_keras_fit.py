"""tf_keras (Keras 2): ``Model.fit`` under MultiWorkerMirroredStrategy, configured by TF_CONFIG."""

from __future__ import annotations

import argparse

import tensorflow as tf
import tf_keras

from benchmarks.measuring import EpochTimes, report
from benchmarks.peers.models import BATCH, EPOCHS, TASKS, arrays, build


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--task", choices=TASKS, required=True)
    parser.add_argument("--steps", type=int, required=True, help="in an epoch")
    flags = parser.parse_args()
    strategy = tf.distribute.MultiWorkerMirroredStrategy()
    batch = BATCH * strategy.num_replicas_in_sync
    tf_keras.utils.set_random_seed(0)
    with strategy.scope():
        model = build(flags.task, tf_keras)
    examples = flags.steps * batch
    data = tf.data.Dataset.from_tensor_slices(arrays(flags.task, examples))
    data = data.shuffle(min(examples, 10_000)).repeat().batch(batch).prefetch(tf.data.AUTOTUNE)
    options = tf.data.Options()
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.DATA
    times = EpochTimes()
    clock = tf_keras.callbacks.LambdaCallback(on_epoch_end=times.record)
    model.fit(
        data.with_options(options),
        epochs=EPOCHS,
        steps_per_epoch=flags.steps,
        verbose=0,
        callbacks=[clock],
    )
    report(step_s=times.step_s(flags.steps), parameters=model.count_params())


if __name__ == "__main__":
    main()
