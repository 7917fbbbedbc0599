"""Searches as they end up in a study and a table, made with plain Optuna; nothing is trained."""

from __future__ import annotations

import dataclasses
import hashlib
import math
import warnings
from collections.abc import Mapping
from typing import Any

import optuna

from tfdp.search.objective import Objective
from tfdp.search.table import Row, Table

ACCURACY = Objective("accuracy", "max")
RUNGS = (3, 9, 27)
FAILURE = "the loss is nan at step 2: this state was not saved"


def search(
    storage: optuna.storages.BaseStorage | None = None, trials: int = 40, running: int = 2
) -> tuple[optuna.Study, Table]:
    """A study and its table: pruned, complete and failed trials, and a conditional parameter.

    Args:
        storage: where the study lies; by default in memory.
        trials: how many.
        running: how many of them, the last ones, still run.
    """
    study = optuna.create_study(
        storage=storage,
        study_name="search",
        direction="maximize",
        sampler=optuna.samplers.TPESampler(seed=3),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        study.set_metric_names([ACCURACY.name])
    reached: dict[int, list[float]] = {steps: [] for steps in RUNGS}
    rows = [_tried(study, reached, is_running=n >= trials - running) for n in range(trials)]
    return study, Table(rows, ACCURACY)


def _tried(study: optuna.Study, reached: dict[int, list[float]], *, is_running: bool) -> Row:
    trial = study.ask()
    trial.suggest_float("learning_rate", 1e-4, 1e-1, log=True)
    trial.suggest_int("units", 16, 512, log=True)
    trial.suggest_float("dropout", 0.0, 0.6)
    if trial.suggest_categorical("optimizer", ["sgd", "adam"]) == "sgd":
        trial.suggest_float("momentum", 0.5, 0.99)
    row = Row(
        number=trial.number,
        state="running",
        params=trial.params,
        hparams={"momentum": 0.0, "batch_norm": True, **trial.params},
        folder=f"trials/{trial.number:04d}",
    )
    trial.set_user_attr("folder", row.folder)
    if trial.number % 13 == 5:
        trial.set_user_attr("failure", FAILURE)
        study.tell(trial, state=optuna.trial.TrialState.FAIL)
        return dataclasses.replace(row, state="failed", failure=FAILURE)
    for steps in RUNGS:
        accuracy = accuracy_of(trial.params, steps)
        trial.report(accuracy, steps)
        reached[steps].append(accuracy)
        row = dataclasses.replace(
            row,
            steps=steps,
            examples=64 * steps,
            rungs={**row.rungs, steps: accuracy},
            objective=accuracy,
            weights_sha256=hashlib.sha256(f"{trial.number} {steps}".encode()).hexdigest(),
        )
        trial.set_user_attr("steps", steps)
        if is_running:
            return row
        best = sorted(reached[steps], reverse=True)[: math.ceil(len(reached[steps]) / 2)]
        if accuracy not in best and steps != RUNGS[-1]:
            study.tell(trial, state=optuna.trial.TrialState.PRUNED)
            return dataclasses.replace(row, state="pruned")
    study.tell(trial, row.objective)
    return dataclasses.replace(row, state="complete")


def accuracy_of(params: Mapping[str, Any], steps: int) -> float:
    """What a network could reach: a smooth function of its hyperparameters."""
    miss = abs(math.log10(params["learning_rate"]) + 2.3) / 3 + abs(params["dropout"] - 0.2) / 2
    miss += 0.1 * abs(math.log2(params["units"]) - 7) / 3 + 0.1 * abs(
        params.get("momentum", 0.8) - 0.9
    )
    return round(0.97 * (1 - math.exp(-steps / 4)) * math.exp(-miss), 4)
