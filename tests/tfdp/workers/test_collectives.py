"""The workers of a strategy."""

from __future__ import annotations

import pytest
import tensorflow as tf

from tfdp.workers.collectives import Workers
from tfdp.workers.faults import Faults


class TwoWorkers(Workers):
    count = 2


def test_workers_are_named_by_their_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which are not their indices if some workers are away."""
    workers = TwoWorkers(tf.distribute.get_strategy())
    assert workers.name(1) == "worker 1", "of a strategy that a user has made"
    monkeypatch.setattr(Faults, "names", ("worker 2", "worker 5"))
    assert [workers.name(index) for index in range(2)] == ["worker 2", "worker 5"]
    assert Workers(tf.distribute.get_strategy()).name(0) == "worker 0", "alone"
