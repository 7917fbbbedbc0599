"""Runs that stand still: how they end, and how they go on. ``make hangs`` has all of them."""

from __future__ import annotations

import concurrent.futures
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.processes import hangs
from tests.processes.test_train import assert_only_own_words, summary

ENDED = {"input": 1, "step": 0}  # the worker that stands still, by kind


@pytest.fixture(scope="module")
def result_of(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], tuple]]:
    """What ``hangs`` returns, by kind; "lock" is started again, beside the others."""
    folders = {kind: tmp_path_factory.mktemp(kind) for kind in hangs.KINDS}
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        runs = {"lock": pool.submit(hangs.finish_once_restarted, "lock", 1, folders["lock"])}
        for kind, victim in ENDED.items():
            runs[kind] = pool.submit(hangs.end, kind, victim, folders[kind])
        yield lambda kind: runs[kind].result()
        pool.shutdown(cancel_futures=True)


@pytest.mark.parametrize("kind", ENDED)
def test_the_chief_says_once_which_worker_was_where(
    kind: str, result_of: Callable[[str], tuple]
) -> None:
    chief, other = result_of(kind)
    assert_only_own_words(chief, other)
    assert chief.count("no step for") == 1
    assert re.search(hangs.expected_line(kind, ENDED[kind]) + r"\Z", chief), chief
    assert re.fullmatch(f"tfdp: {hangs.STEP}worker 0 says which worker was where\n", other)


def test_after_a_restart_the_run_ends_with_the_same_weights(
    undisturbed: Path, result_of: Callable[[str], tuple]
) -> None:
    """A worker whose Python lock is held for ever: no thread of it can end it."""
    output, weights = result_of("lock")
    assert re.search(hangs.expected_line("lock", 1), output), output
    assert "starting again, restart 1 of 1" in output
    assert "finished at step" in output
    assert weights == summary(undisturbed)["weights_sha256"]
