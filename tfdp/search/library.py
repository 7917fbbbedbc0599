"""``tfdp.tune``: a search, started from Python."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from signal import Signals
from typing import Any

from tfdp.search.settings import TuneSettings, check_optuna
from tfdp.search.table import Table

_LOOK_EVERY_S = 0.2


def tune(
    recipe: str | Path,
    *,
    workdir: str | Path,
    objective: str,
    trial_flags: Sequence[str] = (),
    **settings: Any,
) -> Table:
    """Searches for hyperparameters, as ``python -m tfdp.tune`` does.

    Trials are processes of their own; this process only chooses and waits.

    Args:
        recipe: path of a Python file, or a dotted module name.
        workdir: folder for the search; the same call goes on with an unfinished search there.
        objective: ``NAME:max`` or ``NAME:min`` of a metric of the evaluation.
        trial_flags: flags of ``python -m tfdp.train`` for all trials, such as ``--epochs=3``.
        **settings: other flags of ``python -m tfdp.tune`` without their dashes: ``trials=40``,
            ``parallel=4``, ``search=["learning_rate=1e-4..1e-1:log"]``, ``prune="asha"``.

    Returns:
        The table of all trials, a sequence of rows; ``.best`` is the best one.

    Raises:
        tfdp.BadInput: if something is wrong, before any trial starts.
        TypeError: if there is no such setting.
        TrainingError: if the search can't go on, or the best trial is not published.
    """
    check_optuna()
    from tfdp.search.tuning import tune as run_search

    paths = {"export_dir", "models_config", "ssh_config"} & settings.keys()
    for name in paths:
        settings[name] = None if settings[name] is None else Path(settings[name])
    for name in {"search", "require_min", "require_max"} & settings.keys():
        settings[name] = _listed(settings[name])
    flags = TuneSettings(recipe=str(recipe), workdir=Path(workdir), objective=objective, **settings)
    return run_search(flags, _listed(trial_flags), _wait)


def _listed(value: str | Sequence[str]) -> tuple[str, ...]:
    """Returns several strings, or one."""
    return (value,) if isinstance(value, str) else tuple(value)


def _wait(seconds: float) -> Sequence[Signals]:
    time.sleep(min(seconds, _LOOK_EVERY_S))
    return []
