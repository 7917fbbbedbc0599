"""One worker of a run: ``python -m tfdp.train --recipe=… --workdir=…``.

Start it on every node. It finds the other workers by TF_CONFIG, or by what the engine says that
started it (Slurm, Kubernetes, …); without either it trains on this machine's devices. Exit codes
are those of ``cluster.exit_codes``.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from cluster import exit_codes
from cluster.launching import spares
from tfdp import files, log
from tfdp.cli import first_process, flags, process
from tfdp.cli.signals import Signals
from tfdp.errors import BadInput
from tfdp.group import look_for
from tfdp.importing import import_tensorflow
from tfdp.run.settings import TrainSettings
from tfdp.workers.faults import end_process


def main(argv: Sequence[str]) -> int:
    """Runs one worker and returns its exit code."""
    if flags.print_help(TrainSettings, argv, __doc__ or ""):
        return exit_codes.FINISHED
    first_process.go_on_in_a_child()
    signals = Signals()  # before any import, NumPy included, starts a thread
    if not spares.wait_until_needed(_import_training):
        return exit_codes.FINISHED
    lock = None
    try:
        settings = flags.parse(TrainSettings, argv)
        group = look_for(settings.cluster)
        try:
            is_chief = group is None or (group.is_chief and settings.min_workers is None)
            if is_chief:
                lock = files.lock_workdir(settings.workdir)
            log_path = log.open_log(settings.workdir / "logs", group.rank if group else 0)
        except OSError as error:
            raise BadInput(f"--workdir={settings.workdir}: {error.strerror}") from None
        return process.run_to_exit_code(lambda: _train(settings, signals), signals, log_path)
    except BadInput as error:
        return process.report(error, exit_codes.BAD_INPUT)
    finally:
        if lock is not None:
            os.close(lock)


def _train(settings: TrainSettings, signals: Signals) -> None:
    from tfdp import recipe  # imports TensorFlow, which starts threads
    from tfdp.run.training import train

    train(settings, recipe.load(settings.recipe, settings.hparam), signals)


def _import_training() -> None:
    """Imports what ``_train`` will need, in a spare process that waits for its TF_CONFIG."""
    with log.captured():
        import_tensorflow()
        from tfdp import recipe  # noqa: F401
        from tfdp.run import training  # noqa: F401


if __name__ == "__main__":
    end_process(main(sys.argv))
