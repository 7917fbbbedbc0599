"""Stub."""

from __future__ import annotations

from collections.abc import Mapping

from tfdp.search.settings import TuneSettings
from tfdp.search.slot import Slot, thread_environ


def find_slots(settings: TuneSettings, environ: Mapping[str, str]) -> list[Slot]:
    return [
        Slot(f"slot {i}", (), thread_environ(settings.threads_per_trial))
        for i in range(settings.parallel or 1)
    ]
