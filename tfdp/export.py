"""Publishes a checkpoint of a run for TF Serving, without training.

``python -m tfdp.export --recipe=… --workdir=…`` evaluates the newest checkpoint of a run, or the
one of ``--step``, on the recipe's ``eval_data``, and publishes it as the next version in
``WORKDIR/model`` or ``--export_dir``. If a version of that run, step and weights exists already, it
is not published again. TF_CONFIG and exit codes are those of ``python -m tfdp.train``.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from tfdp.cli import process
from tfdp.run.settings import ExportSettings
from tfdp.workers.faults import end_process


def main(argv: Sequence[str]) -> int:
    """Runs one worker and returns its exit code."""
    about = __doc__ or ""
    return process.run_on_checkpoint(ExportSettings, argv, about, "export", _export)


def _export(settings: ExportSettings) -> None:
    from tfdp import recipe  # imports TensorFlow, which starts threads
    from tfdp.run import export_checkpoint

    export_checkpoint.export(settings, recipe.load(settings.recipe, settings.hparam))


if __name__ == "__main__":
    end_process(main(sys.argv))
