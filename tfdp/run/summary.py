"""``WORKDIR/summary.json``: the results of a finished run."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from tfdp.files import write_whole
from tfdp.log import say
from tfdp.provenance import package_versions


@dataclasses.dataclass(kw_only=True)
class Results:
    """Results of a run, as far as they are known.

    Args:
        metrics: training metrics of the last epoch.
        eval_metrics: metrics of the evaluation.
        history: Keras's history, with the epochs.
        examples_per_s: training speed over all replicas; None if nothing was left to train.
        weights_sha256: digest of all weights.
    """

    metrics: dict[str, Any] = dataclasses.field(default_factory=dict)
    eval_metrics: dict[str, Any] = dataclasses.field(default_factory=dict)
    history: dict[str, Any] = dataclasses.field(default_factory=dict)
    examples_per_s: float | None = None
    weights_sha256: str = ""


def write(
    path: Path,
    results: Results,
    *,
    steps: int,
    examples: int | None,
    workers: int,
    replicas: int,
    seed: int,
    best: dict[str, Any] | None,
    restarts: int,
    export_path: Path | None,
) -> None:
    """Writes the summary by one rename, and prints the results.

    Args:
        path: of the summary.
        results: results of the run.
        steps: number of updates done.
        examples: number of examples that they used; None if unknown.
        workers: number of workers.
        replicas: number of replicas.
        seed: seed of the run.
        best: the best evaluation by ``--keep_best``, or None.
        restarts: how often the run went on from a checkpoint.
        export_path: the published version, or None.
    """
    summary = {
        "steps": steps,
        "examples": examples,
        "workers": workers,
        "replicas": replicas,
        "seed": seed,
        "metrics": results.metrics,
        "eval_metrics": results.eval_metrics,
        "history": results.history,
        "best": best,
        "examples_per_s": results.examples_per_s,
        "restarts": restarts,
        "weights_sha256": results.weights_sha256,
        "export_path": None if export_path is None else str(export_path),
        **package_versions(),
    }
    write_whole(path, json.dumps(summary, indent=2) + "\n")
    scores = "  ".join(
        f"{name} {value:.4g}"
        for name, value in results.eval_metrics.items()
        if isinstance(value, (int, float))  # a metric may have a list as its value
    )
    published = "" if export_path is None else f", published as {export_path}"
    say(f"finished at step {steps}{published}" + (f"  {scores}" if scores else ""))
