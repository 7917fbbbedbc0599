"""Reading ahead of the steps, which data made by Python does only within an epoch.

At the end of an epoch such data may change itself or draw (``PyDataset.on_epoch_end``). How far it
was read ahead would differ between workers and from run to run.
"""

from __future__ import annotations

import tensorflow as tf


def without_read_ahead(dataset: tf.data.Dataset) -> tf.data.Dataset:
    """Returns the dataset with the option that nothing reads ahead of what is asked for."""
    options = tf.data.Options()
    options.experimental_optimization.inject_prefetch = False
    return dataset.with_options(options)


def reads_ahead(dataset: tf.data.Dataset) -> bool:
    """Returns whether a dataset may be read ahead: its option does not forbid it."""
    return dataset.options().experimental_optimization.inject_prefetch is not False
