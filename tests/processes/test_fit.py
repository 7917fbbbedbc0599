"""``tfdp.fit`` and ``evaluate`` on real workers: what they compute together, and what they refuse.

The cases are in ``fit_cases.py``; a group of workers goes through many of them in one start.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.processes.fit_cases import LARGE, SMALL
from tests.processes.workers import Workers
from tests.running import Process
from tests.tfdp.records import write

SCRIPT = Path(__file__).with_name("fit_cases.py")
LIMIT_S = 400.0
pytestmark = pytest.mark.timeout(LIMIT_S + 60)  # the fixtures make the runs

INPUTS = ["ragged_and_sparse", "py_dataset", "generator"]
AS_ONE = [
    *("tutorial", "shuffled", "callbacks_of_keras", "learning_rate_set_by_the_chief"),
    *("files_of_two", "bfloat16"),
]
BY_WORKERS = {  # the fault ends the group
    1: [*AS_ONE, *INPUTS],
    2: [
        *("random_state", *AS_ONE, "batch_normalization", "writers", "model_of_no_scope"),
        *("unequal_files", "source_of_another_length", "different_data", "fault_of_worker_1"),
    ],
    3: [
        *("shuffled", *INPUTS, "stop_decided_by_the_last_worker", "read_slices", "sums"),
        "fault_of_worker_1",
    ],
}
RECORDS = {"one": (6,), "uneven": (6, 6, 13)}  # of each file, in folders


@dataclasses.dataclass(frozen=True)
class Group:
    """What a group of workers has left behind.

    Args:
        folder: results, by worker and case.
        codes: the exit code of each worker.
        outputs: the output of each worker.
    """

    folder: Path
    codes: list[int]
    outputs: list[str]

    def __getitem__(self, case: str) -> list[Any]:
        """The results of a case on each worker."""
        paths = [self.folder / str(i) / f"{case}.json" for i in range(len(self.outputs))]
        if not all(path.exists() for path in paths):
            pytest.fail(f"not all workers came so far:\n{self.tails()}")
        return [json.loads(path.read_text()) for path in paths]

    def tails(self) -> str:
        return "\n".join(
            f"--- worker {i} ({code})\n{output[-4000:]}"
            for i, (code, output) in enumerate(zip(self.codes, self.outputs, strict=True))
        )


def together(workers: int, folder: Path) -> Group:
    for name, counts in RECORDS.items():
        write(folder / name, counts)
    command = ["python", str(SCRIPT), str(folder), *BY_WORKERS[workers]]
    # TensorFlow's own messages may come after the error by which a process ends.
    quiet = {"TF_CPP_MIN_LOG_LEVEL": "3"}
    with Workers([command] * workers, env=quiet, limit_s=LIMIT_S) as group:
        codes = group.end()  # however they end: the test of each case says what is wrong with it
        return Group(folder, codes, [process.output for process in group.all])


@pytest.fixture(scope="module")
def two_and_alone(tmp_path_factory: pytest.TempPathFactory) -> tuple[Group, Group]:
    """Two workers, and at the same time plain Keras in one process."""
    folder = tmp_path_factory.mktemp("alone")
    with Process(["python", str(SCRIPT), str(folder), *BY_WORKERS[1]], limit_s=LIMIT_S) as process:
        two = together(2, tmp_path_factory.mktemp("two"))
        return two, Group(folder, [0], [process.wait()])


@pytest.fixture(scope="module")
def two(two_and_alone: tuple[Group, Group]) -> Group:
    return two_and_alone[0]


@pytest.fixture(scope="module")
def alone(two_and_alone: tuple[Group, Group]) -> Group:
    return two_and_alone[1]


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Group:
    return together(3, tmp_path_factory.mktemp("three"))


@pytest.mark.parametrize("case", [case for case in AS_ONE if case != "bfloat16"])
def test_two_workers_are_as_one(case: str, two: Group, alone: Group) -> None:
    first, second = two[case]
    assert first == second
    assert_near(first, alone[case][0], 1e-4 if case == "tutorial" else 1e-9)


@pytest.mark.parametrize("case", ["shuffled", *INPUTS])
def test_three_workers_are_as_one(case: str, three: Group, alone: Group) -> None:
    first, second, third = three[case]
    assert first == second == third
    assert_near(first, alone[case][0], 1e-6)  # Keras multiplies by a third of float32


def test_workers_draw_alike(two: Group) -> None:
    first, second = two["random_state"]
    assert first["before"] != second["before"]
    assert first["after"] == second["after"]
    shuffled = first["after"][-1]
    assert shuffled != sorted(shuffled)


def test_data_that_differs_between_workers_is_refused(two: Group) -> None:
    refusals, others = two["different_data"]
    assert refusals == others
    assert refusals.pop("is unchanged")
    assert "the workers' arrays differ" in refusals.pop("arrays")
    assert refusals["first batch"].startswith("the first batches of the dataset differ")
    assert re.match(r"batches \(at step \d+ to \d+\) of the dataset", refusals["later batch"])
    assert refusals["shorter"].startswith("batches (batch 4 or earlier) of the dataset differ")
    assert refusals.pop("augmented")["updates"] > 8  # of one worker: the examples are the same
    for refusal in refusals.values():
        assert "tfdp.connect()" in refusal


def test_bfloat16_is_sent_but_not_for_embeddings(two: Group, alone: Group) -> None:
    (first, second), (exact,) = two["bfloat16"], alone["bfloat16"]
    assert first == second
    assert_near(first["embedding"], exact["embedding"], 1e-9)
    np.testing.assert_allclose(first["dense"], exact["dense"], rtol=0, atol=0.02)
    assert np.abs(np.subtract(first["dense"], exact["dense"])).max() > 1e-5


def test_small_sums_are_gathered_and_have_the_same_bits_everywhere(three: Group) -> None:
    first, second, third = three["sums"]
    assert first == second == third
    assert first["kinds"] == [[True, True]] * len(SMALL + LARGE)
    assert all(first["near"])
    assert all(first["in_the_workers_order"][: len(SMALL)])
    assert first["gathers"] == len(SMALL)


def test_the_learning_rates_were_those_of_the_chief(two: Group) -> None:
    rates = two["learning_rate_set_by_the_chief"][1]["rates"]
    at_batches = [(first, 0.05, 0.05, 0.05, 0.4) for first in (0.3, 0.2, 0.25)]
    np.testing.assert_allclose(rates, np.ravel(at_batches))


def test_one_worker_stops_all_at_the_same_update(three: Group) -> None:
    first, second, third = three["stop_decided_by_the_last_worker"]
    assert first == second == third
    assert (first["updates"], first["epochs"]) == (8, [0, 1])


def test_what_callbacks_write_is_written_once(two: Group) -> None:
    chief, other = two["writers"]
    assert chief["files"] == ["best.keras", "curves", "log.csv"]
    assert other["files"] == []
    assert chief["fitted"] == other["fitted"]
    header, *rows = chief["csv"].splitlines()
    assert header.startswith("epoch,accuracy,loss")
    losses = [float(row.split(",")[2]) for row in rows]
    np.testing.assert_allclose(losses, other["fitted"]["history"]["loss"])


def test_a_worker_reads_its_slice_and_nothing_else(three: Group) -> None:
    used = 50 * 24 // 3  # of each worker, in 50 updates; the rest was read ahead
    seen = [worker["seen"] for worker in three["read_slices"]]
    for places in seen:
        assert used <= len(places) < 50 * 24
        assert len(set(places)) == len(places)
    assert len(set().union(*seen)) == sum(map(len, seen))


def test_moving_averages_are_those_of_all_workers(two: Group) -> None:
    chief, other = two["batch_normalization"]
    assert chief == other
    mean, variance = (np.array(chief[f"{name} of halves"]) for name in ("mean", "variance"))
    for kind, kept in (("Sequential", 0.5), ("LooksTwice", 0.25)):  # of what was there before
        np.testing.assert_allclose(chief[kind]["mean"], (1 - kept) * mean, rtol=1e-9)
        np.testing.assert_allclose(chief[kind]["variance"], kept + (1 - kept) * variance, rtol=1e-9)


def test_a_model_of_no_scope_is_refused(two: Group) -> None:
    for refusal in two["model_of_no_scope"]:
        assert "TF_CONFIG names 2 workers" in refusal
        assert "with strategy.scope():" in refusal


def test_too_few_files_are_refused_or_divided_by_records(two: Group) -> None:
    outcomes, others = two["unequal_files"]
    assert outcomes == others
    for refusal in outcomes["one FILE"]:
        assert "1 file(s) for 2 workers" in refusal
        assert "part-000.tfrecord" in refusal
        assert "tfdp.from_tfrecords" in refusal
    assert outcomes["one AUTO"] == [mean(RECORDS["one"])] * 2
    assert "reads all of the dataset" in two.outputs[0]
    assert "reads all of the dataset" not in two.outputs[1]


def test_unequal_files_are_refused_in_training_or_divided_by_records(two: Group) -> None:
    outcomes, _ = two["unequal_files"]
    refusal, evaluated = outcomes["uneven FILE"]
    assert "[19, 6] records" in refusal
    assert "part-002.tfrecord (13)" in refusal
    assert evaluated == mean(RECORDS["uneven"])
    assert outcomes["uneven AUTO"] == [mean(RECORDS["uneven"])] * 2


def mean(counts: tuple[int, ...]) -> float:
    return (sum(counts) - 1) / 2  # of the numbers from 0 on


def test_sources_of_different_lengths_are_refused(two: Group) -> None:
    for refusal in two["source_of_another_length"]:
        assert "the workers' sources have [9, 8] examples" in refusal


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
