"""Stub."""

from pathlib import Path

import optuna


def draw(study: optuna.Study, workdir: Path) -> None:
    pass
