"""Evaluates a checkpoint or a published version on a recipe's ``eval_data``, on all workers.

``python -m tfdp.evaluate --recipe=… --workdir=…`` evaluates the newest checkpoint of a run, or the
one of ``--step``; ``--version=MODELS/3`` evaluates a published version through its signature, as TF
Serving would call it. The chief prints a line of JSON. Nothing in the workdir changes. TF_CONFIG
and exit codes are those of ``python -m tfdp.train``.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from tfdp.cli import process
from tfdp.run.settings import EvaluateSettings
from tfdp.workers.faults import end_process


def main(argv: Sequence[str]) -> int:
    """Runs one worker and returns its exit code."""
    about = __doc__ or ""
    return process.run_on_checkpoint(EvaluateSettings, argv, about, "evaluate", _evaluate)


def _evaluate(settings: EvaluateSettings) -> None:
    from tfdp import recipe  # imports TensorFlow, which starts threads
    from tfdp.run import evaluating

    evaluating.evaluate(settings, recipe.load(settings.recipe, settings.hparam))


if __name__ == "__main__":
    end_process(main(sys.argv))
