"""``keras.callbacks.BackupAndRestore`` on several workers: the chief saves, all go on from it.

The chief runs Keras's own callback. It saves at the end of each epoch, and deletes its folder at
the end of training. What it restores has to reach the other workers, and has to be known before the
first epoch's data is chosen; so that happens here, before training begins.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import keras
import numpy as np

from tfdp.errors import BadInput
from tfdp.step import keras_private
from tfdp.step.optimizers import optimizers
from tfdp.workers.collectives import Workers


def restore(
    model: keras.Model, callbacks: Iterable[keras.callbacks.Callback], workers: Workers
) -> int | None:
    """Restores what a ``BackupAndRestore`` of the chief has saved; a collective.

    Returns:
        The epoch to go on with; None if the chief has no such callback, or nothing is saved.

    Raises:
        BadInput: on all workers, if it saves within epochs, or the model is not built.
    """
    found = [each for each in callbacks if isinstance(each, keras.callbacks.BackupAndRestore)]
    if not workers.gather(np.array([len(found)], np.int32))[0, 0]:
        return None

    def restore_on_chief() -> int | None:
        backup: Any = found[0]
        if backup.save_freq != "epoch":
            raise BadInput(
                f"BackupAndRestore(save_freq={backup.save_freq!r}) saves within an epoch, and "
                "Keras then repeats that epoch from its beginning: leave save_freq out, or use "
                "python -m tfdp.train, which goes on at the very step"
            )
        return keras_private.restored_epoch(model, backup)

    if not model.built:
        raise BadInput(
            "BackupAndRestore needs a model with weights before training: begin it with a "
            "keras.Input, or call it on a batch"
        )
    keras_private.move_into_scope(model, optimizers(model))
    if not model.optimizer.built:
        with model.distribute_strategy.scope():
            model.optimizer.build(model.trainable_variables)
    epoch = workers.run_on_chief(restore_on_chief)
    if epoch is not None and workers.count > 1:
        for variable in (*model.variables, *model.optimizer.variables):
            value = variable.numpy()
            data = workers.broadcast(value.tobytes())
            variable.assign(np.frombuffer(data, value.dtype).reshape(value.shape))
    return epoch  # type: ignore[no-any-return]
