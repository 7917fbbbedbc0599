"""When spares are started; tests/processes/test_spares.py has real ones."""

from __future__ import annotations

from typing import Any

import pytest

from cluster.launching.spares import START_DELAY_S, Spares


def test_missing_spares_are_started_some_time_after_the_workers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now_s, started = 100.0, []
    monkeypatch.setattr("time.monotonic", lambda: now_s)

    def start(index: int) -> Any:
        started.append(index)
        if started == [0, 1]:
            raise OSError("no memory")

    spares = Spares(range(2), start)
    assert spares.due_s is None
    spares.schedule()
    spares.start_if_due()
    assert (started, spares.due_s) == ([], now_s + START_DELAY_S)
    now_s += START_DELAY_S
    spares.start_if_due()
    spares.start_if_due()
    assert (started, spares.due_s) == ([0, 1], None)
    spares.schedule()
    now_s += START_DELAY_S
    spares.start_if_due()
    assert started == [0, 1, 1], "one could not be started before"
