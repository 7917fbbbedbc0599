"""``tfdp.fit``, ``evaluate`` and ``predict``: N workers compute what plain Keras computes on one.

The cases are in ``fit_cases.py``; a group of workers goes through many of them in one start.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.processes.workers import Workers
from tests.running import Process

SCRIPT = Path(__file__).with_name("fit_cases.py")
LIMIT_S = 150

ON_THREE = ["shuffled", "evaluating", "predicting"]
ON_TWO = [
    "tutorial",
    *ON_THREE,
    "callbacks_of_keras",
    "learning_rate_set_by_the_chief",
    "files_of_two",
]
ONLY_TOGETHER = {  # by the number of workers; the fault ends the group
    2: ["batch_normalization", "writers", "read_slices", "model_of_no_scope", "fault_of_worker_1"],
    3: ["stop_decided_by_the_last_worker", "read_slices", "fault_of_worker_1"],
}


@dataclasses.dataclass(frozen=True)
class Group:
    """What a group of workers has left behind.

    Args:
        folder: results, by worker and case.
        codes: how each worker ended.
        outputs: what it printed.
    """

    folder: Path
    codes: list[int]
    outputs: list[str]

    def __getitem__(self, case: str) -> list[Any]:
        """What the case gave on each worker."""
        paths = [self.folder / str(i) / f"{case}.json" for i in range(len(self.outputs))]
        if not all(path.exists() for path in paths):
            pytest.fail(f"not all workers came so far:\n{self.tails()}")
        return [json.loads(path.read_text()) for path in paths]

    def tails(self) -> str:
        return "\n".join(
            f"--- worker {i} ({code})\n{output[-4000:]}"
            for i, (code, output) in enumerate(zip(self.codes, self.outputs, strict=True))
        )


def together(workers: int, cases: list[str], folder: Path) -> Group:
    command = ["python", str(SCRIPT), str(folder), *cases, *ONLY_TOGETHER[workers]]
    with Workers([command] * workers, limit_s=LIMIT_S) as group:
        codes = group.end()  # however they end: the test of each case says what is wrong with it
        return Group(folder, codes, [process.output for process in group.all])


@pytest.fixture(scope="module")
def two_and_alone(tmp_path_factory: pytest.TempPathFactory) -> tuple[Group, Group]:
    """Two workers, and at the same time plain Keras in one process."""
    folder = tmp_path_factory.mktemp("alone")
    with Process(["python", str(SCRIPT), str(folder), *ON_TWO], limit_s=LIMIT_S) as process:
        two = together(2, ON_TWO, tmp_path_factory.mktemp("two"))
        return two, Group(folder, [0], [process.wait()])


@pytest.fixture(scope="module")
def two(two_and_alone: tuple[Group, Group]) -> Group:
    return two_and_alone[0]


@pytest.fixture(scope="module")
def alone(two_and_alone: tuple[Group, Group]) -> Group:
    return two_and_alone[1]


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Group:
    return together(3, ON_THREE, tmp_path_factory.mktemp("three"))


@pytest.mark.parametrize("case", ON_TWO)
def test_two_workers_are_as_one(case: str, two: Group, alone: Group) -> None:
    first, second = two[case]
    assert first == second
    assert_near(first, alone[case][0], 1e-4 if case == "tutorial" else 1e-9)


@pytest.mark.parametrize("case", ON_THREE)
def test_three_workers_are_as_one(case: str, three: Group, alone: Group) -> None:
    first, second, third = three[case]
    assert first == second == third
    assert_near(first, alone[case][0], 1e-6)  # Keras multiplies by a third of float32


def test_the_learning_rates_were_those_of_the_chief(two: Group) -> None:
    rates = two["learning_rate_set_by_the_chief"][1]["rates"]
    at_batches = [(first, 0.05, 0.05, 0.05, 0.4) for first in (0.3, 0.2, 0.25)]
    np.testing.assert_allclose(rates, np.ravel(at_batches))


def test_one_worker_stops_all_at_the_same_update(three: Group) -> None:
    told = three["stop_decided_by_the_last_worker"]
    assert [each["updates"] for each in told] == [8, 8, 8]
    assert told[0] == told[1] == told[2]
    assert told[0]["epochs"] == [0, 1]


def test_what_callbacks_write_is_written_once(two: Group) -> None:
    chief, other = two["writers"]
    assert chief["files"] == ["best.keras", "curves", "log.csv"]
    assert other["files"] == []
    assert chief["told"] == other["told"]
    header, *rows = chief["csv"].splitlines()
    assert header.startswith("epoch,accuracy,loss")
    losses = [float(row.split(",")[2]) for row in rows]
    np.testing.assert_allclose(losses, other["told"]["history"]["loss"])


@pytest.mark.parametrize("workers", [2, 3])
def test_a_worker_reads_its_slice_and_nothing_else(
    workers: int, request: pytest.FixtureRequest
) -> None:
    group: Group = request.getfixturevalue({2: "two", 3: "three"}[workers])
    used = 50 * 24 // workers  # of each worker, in 50 updates; the rest was read ahead
    seen = [told["seen"] for told in group["read_slices"]]
    for mine in seen:
        assert used <= len(mine) < 50 * 24
        assert len(set(mine)) == len(mine)
    assert len(set().union(*seen)) == sum(map(len, seen))


def test_moving_averages_are_those_of_all_workers(two: Group) -> None:
    chief, other = two["batch_normalization"]
    assert chief == other
    mean, variance = (np.array(chief[f"{name} of halves"]) for name in ("mean", "variance"))
    for kind, kept in (("Sequential", 0.5), ("LooksTwice", 0.25)):  # of what was there before
        np.testing.assert_allclose(chief[kind]["mean"], (1 - kept) * mean, rtol=1e-9)
        np.testing.assert_allclose(chief[kind]["variance"], kept + (1 - kept) * variance, rtol=1e-9)


def test_a_model_of_no_scope_is_refused(two: Group) -> None:
    for told in two["model_of_no_scope"]:
        assert "TF_CONFIG names 2 workers" in told["refused"]
        assert "with strategy.scope():" in told["refused"]


@pytest.mark.parametrize("workers", [2, 3])
def test_a_fault_ends_all_and_names_its_worker(
    workers: int, request: pytest.FixtureRequest
) -> None:
    group: Group = request.getfixturevalue({2: "two", 3: "three"}[workers])
    assert group.codes == [1] * workers, group.tails()
    for worker, output in enumerate(group.outputs):
        assert "case fault_of_worker_1" in output, group.tails()
        last_line = output.rstrip().splitlines()[-1]
        if worker == 1:
            assert "in on_epoch_end" in output
            assert last_line == "ZeroDivisionError: the callback of worker 1 broke"
        else:
            assert last_line.startswith("tfdp.errors.PeerFailed: worker 1 failed: ZeroDivision")
            assert "the callback of worker 1 broke" in last_line


def assert_near(result: Any, expected: Any, tolerance: float, where: str = "") -> None:
    """Fails unless two results have the same keys and shapes, and numbers near each other."""
    if isinstance(expected, Mapping):
        assert result.keys() == expected.keys(), where
        for key, value in expected.items():
            assert_near(result[key], value, tolerance, f"{where}/{key}")
    else:
        np.testing.assert_allclose(
            result, expected, rtol=tolerance, atol=tolerance / 100, err_msg=where
        )
