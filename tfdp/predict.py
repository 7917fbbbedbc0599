"""Writes predictions for a recipe's ``predict_data``, or ``eval_data``, by all workers.

``python -m tfdp.predict --recipe=… --workdir=… --output=DIR`` predicts with the newest checkpoint
of a run, or the one of ``--step``; ``--version=MODELS/3`` with a published version, as TF Serving
would. Each worker computes its own parts of the data, and a part appears in DIR when it is whole.
The same command goes on where it was killed, with any number of workers. TF_CONFIG and exit codes
are those of ``python -m tfdp.train``.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from tfdp.cli import process
from tfdp.run.settings import PredictSettings
from tfdp.workers.faults import end_process


def main(argv: Sequence[str]) -> int:
    """Runs one worker and returns its exit code."""
    about = __doc__ or ""
    return process.run_on_checkpoint(PredictSettings, argv, about, "predict", _predict)


def _predict(settings: PredictSettings) -> None:
    from tfdp import recipe  # imports TensorFlow, which starts threads
    from tfdp.run import predicting

    predicting.predict(settings, recipe.load(settings.recipe, settings.hparam))


if __name__ == "__main__":
    end_process(main(sys.argv))
