"""Cost of checkpoints: a CNN on two workers, with a checkpoint every 100 steps and without.

    python -m benchmarks.checkpoint_cost [--rounds=3]

Results are the ratio of examples per second, and how long a step waits for the copy of the state.
With other work on the cores, only the second means something.
"""

from __future__ import annotations

import sys
import tempfile
import time
from typing import Any

from benchmarks import measuring
from benchmarks.measuring import Spread
from benchmarks.peers import models
from benchmarks.peers.models import BATCH
from tests.running import run

EPOCH_STEPS, EPOCHS = 100, 8  # the first and the last epoch are not timed


def build_model(hparams: Any) -> Any:
    """Returns a CNN of about 95k parameters, with batch normalization."""
    import keras

    return models.build("cnn", keras)


def train_data(hparams: Any) -> Any:
    """Returns noise."""
    import numpy as np

    import tfdp

    rng = np.random.default_rng(0)
    examples = 2 * BATCH * EPOCH_STEPS
    images = rng.random((examples, 32, 32, 3), np.float32)
    return tfdp.from_arrays(images, rng.integers(0, 10, examples))


def callbacks(hparams: Any) -> list[Any]:
    """Reports total seconds of the timed epochs, and seconds of the copy in each save."""
    import keras

    from tfdp.checkpoints.saving import Saver

    begins_s: list[float] = []
    copies_s: list[float] = []
    save = Saver.save

    def timed_save(saver: Saver, *args: Any) -> None:
        began_s = time.perf_counter()
        save(saver, *args)
        copies_s.append(time.perf_counter() - began_s)

    Saver.save = timed_save  # type: ignore[method-assign]

    def report(logs: Any) -> None:
        measuring.report(seconds=begins_s[-1] - begins_s[1], copies=copies_s[1:-1])

    return [
        keras.callbacks.LambdaCallback(
            on_epoch_begin=lambda *_: begins_s.append(time.perf_counter()), on_train_end=report
        )
    ]


def measure(every_steps: int) -> dict[str, Any]:
    """Trains on two workers and returns the figures that the chief reports."""
    train = f"--recipe={__file__} --steps={EPOCHS * EPOCH_STEPS} --global_batch_size={2 * BATCH}"
    with tempfile.TemporaryDirectory() as workdir:
        output = run(
            [
                *("python", "-m", "cluster.launch", "--workers=2", "--"),
                *(sys.executable, "-m", "tfdp.train", *train.split(), f"--workdir={workdir}/run"),
                *(f"--checkpoint_every_steps={every_steps}", "--export_dir=none"),
            ],
            limit_s=600,
        )
    return measuring.reports_in(output)[0]


def to_markdown(figures: dict[str, Any]) -> str:
    ratio = measuring.ratios(figures["without_s"], figures["often_s"])
    copies = Spread.of([1000 * copy_s for copy_s in figures["copies_s"]])
    step_ms = 1000 * Spread.of(figures["without_s"]).median / (EPOCHS - 2) / EPOCH_STEPS
    percent = 100 * copies.median / step_ms / EPOCH_STEPS
    return (
        f"Examples/s with a checkpoint every {EPOCH_STEPS} steps over without: {ratio.text(4)}.\n\n"
        f"A step waits {copies.text(1)} ms for a copy, and takes {step_ms:.1f} ms: {percent:.2f} % "
        f"of {EPOCH_STEPS} steps."
    )


def main() -> None:
    """Alternates between runs with checkpoints and without."""
    settings = measuring.arguments(__doc__, rounds=3)
    began = measuring.machine()
    figures: dict[str, list[float]] = {"without_s": [], "often_s": [], "copies_s": []}
    for _ in range(settings.rounds):
        without, often = measure(EPOCHS * EPOCH_STEPS), measure(EPOCH_STEPS)
        figures["without_s"].append(without["seconds"])
        figures["often_s"].append(often["seconds"])
        figures["copies_s"] += often["copies"]
    measuring.save_results("checkpoint_cost", vars(settings), began, figures, to_markdown(figures))


if __name__ == "__main__":
    main()
