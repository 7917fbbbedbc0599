"""Stub."""

from pathlib import Path

import optuna
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock


def open_storage(path: Path) -> optuna.storages.JournalStorage:
    path.unlink(missing_ok=True)
    return optuna.storages.JournalStorage(
        JournalFileBackend(str(path), lock_obj=JournalFileOpenLock(str(path) + ".x"))
    )
