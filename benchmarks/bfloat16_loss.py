"""Loss of a run that sends gradients as bfloat16, compared with float32.

    python -m benchmarks.bfloat16_loss [--epochs=20] [--seeds=0,1,2]

Two workers train `tfdp.recipes.digits`. Runs with the same seed have the same initial weights and
batches; runs with other seeds show how much of a difference is chance.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks import measuring
from tests.running import run

DTYPES = ("float32", "bfloat16")


def measure(dtype: str, seed: int, epochs: int) -> dict[str, Any]:
    """Trains and returns the loss of each epoch and the accuracy on the evaluation images."""
    with tempfile.TemporaryDirectory() as folder:
        workdir = Path(folder, "run")
        train = f"--recipe=tfdp.recipes.digits --epochs={epochs} --seed={seed} --export_dir=none"
        run(
            [
                *("python", "-m", "cluster.launch", "--workers=2", "--"),
                *(sys.executable, "-m", "tfdp.train", *train.split(), f"--workdir={workdir}"),
                f"--gradient_dtype={dtype}",
            ],
            limit_s=600,
        )
        summary = json.loads((workdir / "summary.json").read_text())
    return {
        "loss": summary["history"]["loss"],
        "accuracy": summary["eval_metrics"]["accuracy"],
    }


def to_markdown(figures: dict[str, list[dict[str, Any]]]) -> str:
    """Returns a table with the spread over seeds at about six epochs, and the accuracies."""
    epochs = len(figures[DTYPES[0]][0]["loss"])
    rows = []
    for epoch in sorted({*range(0, epochs, max(1, epochs // 5)), epochs - 1}):
        losses = {
            dtype: [seed_run["loss"][epoch] for seed_run in figures[dtype]] for dtype in DTYPES
        }
        rows.append(
            [
                epoch + 1,
                *(measuring.Spread.of(losses[dtype]).text(4) for dtype in DTYPES),
                measuring.ratios(losses["bfloat16"], losses["float32"]).text(3),
            ]
        )
    accuracies = (
        f"{dtype} {statistics.median(seed_run['accuracy'] for seed_run in figures[dtype]):.4f}"
        for dtype in DTYPES
    )
    return (
        f"{measuring.table(('epoch', *(f'loss, {dtype}' for dtype in DTYPES), 'ratio'), rows)}\n\n"
        f"Accuracy on evaluation images, medians: {', '.join(accuracies)}."
    )


def main() -> None:
    """Trains with both dtypes from every seed."""
    settings = measuring.arguments(__doc__, epochs=20, seeds=(0, 1, 2))
    began = measuring.machine()
    figures: dict[str, list[dict[str, Any]]] = {dtype: [] for dtype in DTYPES}
    for seed in settings.seeds:
        for dtype in DTYPES:
            figures[dtype].append(measure(dtype, seed, settings.epochs))
    measuring.save_results("bfloat16_loss", vars(settings), began, figures, to_markdown(figures))


if __name__ == "__main__":
    main()
