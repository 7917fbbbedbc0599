"""A script as users write it who have a ClusterResolver of their own, and no TF_CONFIG.

``python own_resolver.py FOLDER INDEX PORT…`` is one of as many workers as there are ports.
"""

from __future__ import annotations

import sys

import keras
import numpy as np
import tensorflow as tf

import tfdp
from tfdp.log import say_on_chief


class Sampling(keras.layers.Layer):
    """Draws whenever the model answers, from a seed that the strategy mirrors."""

    def __init__(self) -> None:
        super().__init__()
        self.seeds = keras.random.SeedGenerator(1)

    def call(self, mean: tf.Tensor) -> tf.Tensor:
        return mean + keras.random.normal(keras.ops.shape(mean), seed=self.seeds)


folder, index, *ports = sys.argv[1:]
addresses = [f"127.0.0.1:{port}" for port in ports]
resolver = tf.distribute.cluster_resolver.SimpleClusterResolver(
    tf.train.ClusterSpec({"worker": addresses}), task_type="worker", task_id=int(index)
)
print("alone", tfdp.is_chief())  # before any strategy; TensorFlow must not be started by it
strategy = tf.distribute.MultiWorkerMirroredStrategy(cluster_resolver=resolver)
print("outside", tfdp.is_chief())
elsewhere = keras.Sequential([keras.layers.Input((3,)), keras.layers.Dense(2)])
elsewhere.compile("sgd", "mse")
with strategy.scope():
    print("inside", tfdp.is_chief())
    model = keras.Sequential([keras.layers.Input((3,)), keras.layers.Dense(2), Sampling()])
    model.compile("sgd", "mse")
try:
    tfdp.fit(elsewhere, np.ones((8, 3)), np.ones((8, 2)), verbose=0)
except tfdp.BadInput as error:
    print("refused", error)
tfdp.fit(model, np.ones((8, 3)), np.ones((8, 2)), batch_size=4, verbose=2)
say_on_chief("once for all")
if tfdp.is_chief():
    tfdp.export(model, folder)
tfdp.evaluate(model, np.ones((8, 3)), np.ones((8, 2)))  # so that no worker leaves before
