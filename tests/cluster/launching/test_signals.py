from __future__ import annotations

import select
import signal
import subprocess
from collections.abc import Iterator

import pytest

from cluster.launching import signals
from cluster.launching.signals import Signals


@pytest.fixture(autouse=True)
def as_in_a_terminal() -> Iterator[None]:
    """Restores SIGINT: shells start background processes with SIGINT ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def now_s(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time of a clock that stands still, as a list of one item."""
    now_s = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now_s[0])
    return now_s


@pytest.fixture
def received(now_s: list[float], as_in_a_terminal: None) -> Iterator[Signals]:
    with Signals() as received:
        yield received


@pytest.mark.parametrize(
    ("sent", "expected"),
    [
        (signal.SIGINT, signal.SIGINT),
        (signal.SIGTERM, signal.SIGTERM),
        (signal.SIGHUP, signal.SIGTERM),
    ],
)
def test_a_signal_is_received(
    sent: signal.Signals, expected: signal.Signals, received: Signals
) -> None:
    assert received.receive() == []
    signal.raise_signal(sent)
    assert select.select([received], [], [], 0)[0] == [received]
    assert received.receive() == [expected]
    assert select.select([received], [], [], 0)[0] == []


def test_a_duplicate_is_not_a_second_signal(received: Signals, now_s: list[float]) -> None:
    signal.raise_signal(signal.SIGTERM)
    assert received.receive() == [signal.SIGTERM]
    now_s[0] += signals.DUPLICATE_S / 2
    signal.raise_signal(signal.SIGTERM)
    assert received.receive() == []
    now_s[0] += signals.DUPLICATE_S
    signal.raise_signal(signal.SIGTERM)
    assert received.receive() == [signal.SIGTERM]


def test_the_end_of_a_child_wakes_the_launcher_and_is_no_stop_signal(received: Signals) -> None:
    subprocess.run(["true"], check=True)
    assert select.select([received], [], [], 10)[0] == [received]
    assert received.receive() == []


def test_an_ignored_signal_stays_ignored_and_all_handlers_are_restored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    interrupt = signal.getsignal(signal.SIGINT)
    try:
        with Signals():
            assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
            assert signal.getsignal(signal.SIGINT) != interrupt
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
        assert signal.getsignal(signal.SIGINT) == interrupt
    finally:
        signal.signal(signal.SIGHUP, before)
