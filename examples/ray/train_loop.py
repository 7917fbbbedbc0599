"""``tfdp.fit`` as the training loop of Ray Train: ``python train_loop.py --workers=2``.

Copy this file, and put your model and data into ``build_model`` and ``train_data``. If a worker is
lost, Ray starts new ones, and they go on after the last epoch that was reported.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
from pathlib import Path
from typing import Any

import keras
import numpy as np
import ray.train
from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
from ray.train.tensorflow import TensorflowTrainer

import tfdp


def build_model() -> keras.Model:
    """Returns the compiled model."""
    layers = [
        keras.layers.Input((2,)),
        keras.layers.Dense(64, "relu"),
        keras.layers.Dropout(0.1),
        keras.layers.Dense(1),
    ]
    model = keras.Sequential(layers)
    model.compile(keras.optimizers.Adam(3e-3), "mse", metrics=["mae"])
    return model


def train_data() -> tfdp.Source:
    """Returns single examples; tfdp batches them."""
    points = np.random.default_rng(0).uniform(-1, 1, (20_000, 2)).astype(np.float32)
    return tfdp.from_arrays(points, points[:, :1] * points[:, 1:])


class ReportToRay(keras.callbacks.Callback):
    """Reports each epoch to Ray Train, with the files of ``backup`` as a checkpoint.

    Put it after BackupAndRestore, which has saved the epoch by then.

    Args:
        backup: the folder of BackupAndRestore.
    """

    def __init__(self, backup: Path) -> None:
        super().__init__()
        self._backup = backup

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Reports; every worker has to, and the chief's report has the checkpoint."""
        checkpoint = None
        if tfdp.is_chief():
            checkpoint = ray.train.Checkpoint.from_directory(self._backup)
        ray.train.report({"epoch": epoch + 1, **(logs or {})}, checkpoint=checkpoint)


def train_loop(config: dict[str, Any]) -> None:
    """Runs in a thread of every worker."""
    logging.getLogger("tensorflow").setLevel(logging.WARNING)  # Ray shows every logger from INFO on
    keras.utils.set_random_seed(0)  # a restarted worker has the same seeds for its random layers
    strategy = tfdp.connect()  # TF_CONFIG is from TensorflowTrainer
    with strategy.scope():
        model = build_model()
    with tempfile.TemporaryDirectory() as folder:
        backup = Path(folder) / "backup"
        if checkpoint := ray.train.get_checkpoint():  # this is a restart
            checkpoint.to_directory(backup)
        tfdp.fit(
            model,
            train_data(),
            epochs=config["epochs"],
            batch_size=64,
            verbose=0,
            callbacks=[
                keras.callbacks.BackupAndRestore(backup, delete_checkpoint=False),
                ReportToRay(backup),
            ],
        )


def main() -> None:
    """Trains on a Ray cluster; without one, Ray starts on this machine."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--use_gpu", action="store_true", help="one GPU for each worker")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--max_failures", type=int, default=3, help="how often Ray starts again")
    parser.add_argument("--storage_path", help="a folder that all nodes share (~/ray_results)")
    parser.add_argument("--name", help="of the run; a new script with the same name goes on")
    flags = parser.parse_args()
    trainer = TensorflowTrainer(
        train_loop,
        train_loop_config={"epochs": flags.epochs},
        scaling_config=ScalingConfig(num_workers=flags.workers, use_gpu=flags.use_gpu),
        run_config=RunConfig(
            name=flags.name,
            storage_path=flags.storage_path,
            worker_runtime_env={"env_vars": {"TF_CPP_MIN_LOG_LEVEL": "2"}},
            checkpoint_config=CheckpointConfig(num_to_keep=2),
            failure_config=FailureConfig(max_failures=flags.max_failures),
        ),
    )
    result = trainer.fit()
    print(f"finished: {result.metrics}, in {result.path}")


if __name__ == "__main__":
    main()
