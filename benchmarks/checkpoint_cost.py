"""What checkpoints cost: a CNN on two workers, one every 100 steps and none, in turns.

    python benchmarks/checkpoint_cost.py [rounds]

Prints the median ratio of examples per second, its spread, and how long a step waited for the copy
of the state; with others at work on the cores, only the last figure means something.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

BATCH, EPOCH_STEPS, EPOCHS = 32, 100, 8  # batch per worker; the first and last are not timed
_FIGURES = "FIGURES "


def build_model(hparams: Any) -> Any:
    """About 95k parameters, with batch normalization."""
    import keras

    layers: list[keras.Layer] = [keras.layers.Input((32, 32, 3))]
    for filters in (32, 64, 64):
        layers += [
            keras.layers.Conv2D(filters, 3, padding="same"),
            keras.layers.BatchNormalization(),
            keras.layers.ReLU(),
            keras.layers.MaxPooling2D(),
        ]
    layers += [keras.layers.Flatten(), keras.layers.Dense(37, "relu"), keras.layers.Dense(10)]
    model = keras.Sequential(layers)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("adam", loss, metrics=["accuracy"])
    return model


def train_data(hparams: Any) -> Any:
    """Noise."""
    import numpy as np

    import tfdp

    rng = np.random.default_rng(0)
    examples = 2 * BATCH * EPOCH_STEPS
    images = rng.random((examples, 32, 32, 3), np.float32)
    return tfdp.from_arrays(images, rng.integers(0, 10, examples))


def callbacks(hparams: Any) -> list[Any]:
    """Prints seconds of the epochs between the first and the last, and of each save's copy."""
    import keras

    from tfdp.saving import Saver

    begins: list[float] = []
    copies: list[float] = []
    save = Saver.save

    def timed(saver: Saver, *args: Any) -> None:
        began = time.perf_counter()
        save(saver, *args)
        copies.append(time.perf_counter() - began)

    Saver.save = timed  # type: ignore[method-assign]

    def tell(logs: Any) -> None:
        figures = {"seconds": begins[-1] - begins[1], "copies": copies[1:-1]}
        print(_FIGURES + json.dumps(figures), flush=True)

    return [
        keras.callbacks.LambdaCallback(
            on_epoch_begin=lambda *_: begins.append(time.perf_counter()), on_train_end=tell
        )
    ]


def measure(every_steps: int) -> dict[str, Any]:
    """Trains on two workers and returns the chief's figures."""
    train = f"--recipe={__file__} --steps={EPOCHS * EPOCH_STEPS} --global_batch_size={2 * BATCH}"
    with tempfile.TemporaryDirectory() as workdir:
        output = subprocess.run(
            [
                *(sys.executable, "-m", "cluster.launch", "--workers=2", "--"),
                *(sys.executable, "-m", "tfdp.train", *train.split(), f"--workdir={workdir}/run"),
                *(f"--checkpoint_every_steps={every_steps}", "--export_dir=none"),
            ],
            cwd=Path(__file__).resolve().parents[1],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=600,
        ).stdout
    told = [line for line in output.splitlines() if "worker 0" in line and _FIGURES in line]
    assert told, output
    figures: dict[str, Any] = json.loads(told[0].partition(_FIGURES)[2])
    return figures


def main(rounds: int) -> None:
    """Alternates between runs with checkpoints and without."""
    ratios, waits = [], []
    for _ in range(rounds):
        without, often = measure(EPOCHS * EPOCH_STEPS), measure(EPOCH_STEPS)
        ratios.append(without["seconds"] / often["seconds"])
        waits += often["copies"]
    step_s = without["seconds"] / (EPOCHS - 2) / EPOCH_STEPS
    print(
        f"examples/s with one every {EPOCH_STEPS} steps over without: "
        f"{statistics.median(ratios):.4f} ({min(ratios):.4f} to {max(ratios):.4f})"
    )
    print(
        f"a step waits {1000 * statistics.median(waits):.1f} ms for a copy "
        f"({1000 * min(waits):.1f} to {1000 * max(waits):.1f}), and takes {1000 * step_s:.1f} ms: "
        f"{100 * statistics.median(waits) / step_s / EPOCH_STEPS:.2f} % of {EPOCH_STEPS} steps"
    )


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 3)
