"""Users' callbacks and calls on two real workers, compared with plain Keras in one process.

The cases are in ``callback_cases.py``; the workers go through all of them in one start.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.processes.workers import Workers
from tests.running import Process

SCRIPT = Path(__file__).with_name("callback_cases.py")
LIMIT_S = 200
AS_ONE = [
    *("values_of_variables", "compiled_in_callbacks", "compiled_between_fits"),
    *("models_in_callbacks", "evaluated_within_epochs", "hooks", "calls", "backed_up"),
]
REFUSED = {
    "unbuilt": "model.predict of a model without weights",
    "fit": "model.fit of Keras 3 can't train on 2 workers: call tfdp.fit(model, …)",
    "train_on_batch": "give your loop's batches to tfdp.fit(model, dataset)",
    "compile": "compiled the model on worker(s) [0] of 2 only: compile it on all workers",
    "batch_size": "fixed batch size 6, and each of 2 replicas or micro-batches gets",
    "stateful": "is stateful",
}


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The results of each case by plain Keras and on two workers, and the workers' outputs."""
    folders = {name: tmp_path_factory.mktemp(name) for name in ("alone", "workers")}

    def command(name: str, cases: list[str]) -> list[str]:
        return ["python", str(SCRIPT), str(folders[name]), *cases]

    with (
        Process(command("alone", AS_ONE), limit_s=LIMIT_S) as alone,
        Workers(
            [command("workers", [*AS_ONE, "refusals", "quiet"])] * 2, limit_s=LIMIT_S
        ) as workers,
    ):
        outputs = workers.wait(0, 0)
        alone.wait()

    def read(name: str, worker: int, case: str) -> Any:
        return json.loads((folders[name] / str(worker) / f"{case}.json").read_text())

    return read, outputs


@pytest.mark.parametrize("case", [each for each in AS_ONE if each != "models_in_callbacks"])
def test_workers_are_as_keras_in_one_process(case: str, results: Any) -> None:
    read, _ = results
    expected = read("alone", 0, case)
    assert expected
    for worker in range(2):
        assert_near(read("workers", worker, case), expected)


def test_models_compute_in_callbacks_on_all_workers_and_on_the_chief_alone(results: Any) -> None:
    read, _ = results
    expected = read("alone", 0, "models_in_callbacks")
    chief, other = (read("workers", worker, "models_in_callbacks") for worker in range(2))
    assert_near(chief, expected)
    on_all = len(expected["found"]) // 2  # the first fit's; in the second, the chief computes
    assert_near(other, expected | {"found": expected["found"][:on_all]})


@pytest.mark.parametrize("case", REFUSED)
def test_what_workers_cannot_do_is_refused_on_all_of_them(case: str, results: Any) -> None:
    read, _ = results
    for worker in range(2):
        assert REFUSED[case] in read("workers", worker, "refusals")[case]


def test_keras_warns_and_prints_on_the_chief(results: Any) -> None:
    _, (chief, other) = results
    for text in (
        "Do not pass an `input_shape`",
        "LearningRateScheduler setting learning rate",
        "jit_compile=True is ignored",
    ):
        assert chief.count(text) == 1
        assert text not in other
    for output in (chief, other):
        assert "UserWarning: of the user" in output


def assert_near(result: Any, expected: Any, where: str = "") -> None:
    """Fails unless two results have the same structure and texts, and numbers near each other."""
    if isinstance(expected, dict):
        assert result.keys() == expected.keys(), where
        for key, value in expected.items():
            assert_near(result[key], value, f"{where}/{key}")
    elif isinstance(expected, list):
        assert len(result) == len(expected), where
        for place, pair in enumerate(zip(result, expected, strict=True)):
            assert_near(*pair, f"{where}/{place}")
    elif isinstance(expected, (str, bool)):
        assert result == expected, where
    else:
        np.testing.assert_allclose(result, expected, rtol=1e-8, atol=1e-10, err_msg=where)
