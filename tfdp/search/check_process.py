"""A fresh process that prepares a trial without training it, and writes what a search has to know.

``python -m tfdp.search.check_process FLAGS OF tfdp.train`` ends with 2 and a message if a trial
could not train: the model, the data, the callbacks, the conditions for publishing. Otherwise it
writes ``WORKDIR/facts.json``: ``total_steps``, ``steps_per_epoch``, ``has_eval_data``,
``counts_examples`` (whether their number is known), ``metrics`` (of an evaluation, or of training
without one).
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence

from cluster import exit_codes
from tfdp import log
from tfdp.cli import flags, process
from tfdp.cli.signals import Signals
from tfdp.errors import BadInput
from tfdp.files import write_whole
from tfdp.run.settings import TrainSettings
from tfdp.workers.faults import end_process


def main(argv: Sequence[str]) -> int:
    """Prepares a run in its workdir, and returns the exit code."""
    signals = Signals()  # before any import, NumPy included, starts a thread
    try:
        settings = flags.parse(TrainSettings, argv)
    except BadInput as error:
        return process.report(error, exit_codes.BAD_INPUT)
    log_path = log.open_log(settings.workdir / "logs", 0)
    return process.run_to_exit_code(lambda: _check(settings), signals, log_path)


def _check(settings: TrainSettings) -> None:
    from tfdp import recipe  # imports TensorFlow, which starts threads
    from tfdp.run.preparing import prepare
    from tfdp.run.startup import meet
    from tfdp.step.metrics import read_metrics

    loaded = recipe.load(settings.recipe, settings.hparam)
    run = prepare(settings, loaded, meet(settings, loaded), None)
    values = read_metrics(run.model)
    facts = {
        "total_steps": run.last_step,
        "steps_per_epoch": run.batches.steps_per_epoch,
        "has_eval_data": run.data.eval is not None,
        "counts_examples": run.batches.examples_before is not None,
        "metrics": [name for name, value in values.items() if isinstance(value, (int, float))],
    }
    write_whole(settings.workdir / "facts.json", json.dumps(facts))


if __name__ == "__main__":
    end_process(main(sys.argv))
