"""What becomes of frozen workers; tests/processes/test_frozen.py has real ones."""

from __future__ import annotations

import signal
from typing import Any

import pytest

from cluster import policy
from cluster.launching.frozen import FrozenWorkers


class Stopped:
    """A worker that never runs, and that not even SIGKILL ends."""

    name = "worker 1"

    def __init__(self) -> None:
        self.signals: list[int] = []

    def sample(self) -> policy.Sample | None:
        return policy.Sample("D", 7)

    def signal(self, number: signal.Signals) -> None:
        self.signals.append(number)


class Silent(Stopped):
    """A worker of which nothing new has arrived."""

    def sample(self) -> policy.Sample | None:
        return None


def test_a_frozen_worker_is_killed_once_and_given_up_if_that_does_not_end_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now_s = 100.0
    monkeypatch.setattr("time.monotonic", lambda: now_s)
    stopped: Any = Stopped()
    silent: Any = Silent()
    frozen = FrozenWorkers()
    lines: list[str] = []
    for _ in range(10 * int(policy.FROZEN_AFTER_S)):
        lines += frozen.kill_if_due([stopped, silent])
        if lines:
            break
        assert frozen.loss_of(stopped) == ""
        now_s += policy.SAMPLE_EVERY_S / 2
    loss = "was frozen for 20 s (waiting in the kernel)"
    assert lines == [f"worker 1 {loss}: sending SIGKILL to it"]
    assert now_s == 100.0 + policy.FROZEN_AFTER_S
    assert frozen.loss_of(stopped) == loss
    assert not frozen.is_given_up(stopped)
    now_s += policy.GRACE_S + 1
    assert frozen.kill_if_due([stopped, silent]) == []
    assert frozen.is_given_up(stopped)
    assert stopped.signals == [signal.SIGKILL]
    assert silent.signals == []
    assert not frozen.is_given_up(silent)
