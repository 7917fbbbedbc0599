"""Searches for hyperparameters: ``python -m tfdp.tune --recipe=… --workdir=… -- FLAGS``.

Optuna chooses, from the recipe's ``search_space`` or from ``--search``; each trial is a run of
``python -m tfdp.train`` with the flags after ``--``, in ``WORKDIR/trials/<number>``. A search that
was killed goes on with the same command, and ends with the same table. Exit codes: 0 finished, 2
wrong flags or recipe, 143 and 130 told to stop (all trials are saved), 1 anything else.
"""

from __future__ import annotations

import dataclasses
import select
import signal
import sys
from collections.abc import Sequence

from cluster import exit_codes
from cluster.launching.signals import Signals
from tfdp import log
from tfdp.cli import flags, process
from tfdp.errors import BadInput, TrainingError
from tfdp.run.settings import TrainSettings
from tfdp.search.settings import TuneSettings, check_optuna
from tfdp.workers.faults import end_process


def main(argv: Sequence[str]) -> int:
    """Runs a search and returns the exit code."""
    split = argv.index("--") if "--" in argv else len(argv)
    own, of_trials = argv[:split], argv[split + 1 :]
    if flags.print_help(TuneSettings, own, __doc__ or ""):
        return exit_codes.FINISHED
    with Signals() as signals:
        try:
            _check_sides(own)
            settings = flags.parse(TuneSettings, own)
            check_optuna()
            return _tune(settings, of_trials, signals)
        except BadInput as error:
            return process.report(error, exit_codes.BAD_INPUT)


def _check_sides(own: Sequence[str]) -> None:
    """Raises BadInput if a flag of trials is in front of ``--``."""
    of_search, of_trials = (
        {field.name for field in dataclasses.fields(kind)} for kind in (TuneSettings, TrainSettings)
    )
    for word in own:
        name = word.lstrip("-").partition("=")[0]
        if word.startswith("-") and name in of_trials - of_search:
            raise BadInput(f"--{name} is a flag of the trials' runs: put it after --")


def _tune(settings: TuneSettings, of_trials: Sequence[str], signals: Signals) -> int:
    def wait(seconds: float) -> Sequence[signal.Signals]:
        select.select([signals], [], [], seconds)
        return signals.receive()

    try:
        log.open_log(settings.workdir / "logs", 0)
    except OSError as error:
        raise BadInput(f"--workdir={settings.workdir}: {error.strerror}") from None
    from tfdp.search.child import SearchStopped  # with Optuna and TensorFlow
    from tfdp.search.tuning import tune

    try:
        tune(settings, of_trials, wait)
    except SearchStopped as stopped:
        return process.report(stopped, 128 + stopped.number)
    except BadInput:
        raise
    except TrainingError as error:
        return process.report(error, exit_codes.FAILED)
    return exit_codes.FINISHED


if __name__ == "__main__":
    end_process(main(sys.argv))
