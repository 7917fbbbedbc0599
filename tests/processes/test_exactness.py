"""N are one: what plain Keras computes in one process is what tfdp computes on any number.

The cases are in ``tests/exactness``, and ``docs/exactness.md`` has all of them on all numbers. Here
each is computed once, on two or three workers where they may do something else than replicas of one
process, which compute the rest; a few on four.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from tests.exactness.groups import Group, Running, largest_difference
from tests.exactness.run import CASES, tolerance

LIMIT_S = 400.0

# Optimizers and their options that do to gradients' sums, by themselves, what others do: the table
# alone has them.
ALIKE = {
    *(f"optimizer_{name}" for name in ("RMSprop", "Adadelta", "Adagrad", "Adamax", "Nadam")),
    *(f"optimizer_{name}" for name in ("Ftrl", "Lion", "AdamW", "Lamb", "Adafactor")),
    *("schedule_with_restarts", "clipvalue"),
}
ON_FOUR_REPLICAS = [
    "dict_inputs_and_two_outputs",
    "embedding_and_clipping",
    "mask",
    "accumulate_steps_2",
    "fewer_examples_than_replicas",
]
ON_THREE_WORKERS = [
    "dict_inputs_and_two_outputs",
    "embedding_and_clipping",
    "mask",
    "dataset",
    "batch_smaller_than_replicas",
    "fewer_examples_than_replicas",
    "bytes_per_pack_64",
]
ON_TWO_WORKERS = [
    "overridden_train_step",
    "synchronized_batch_normalization",
    "ema_overwrite_frequency",
    "gradient_accumulation_steps",
    "accumulation_and_loss_scale",
    "accumulate_steps_2",
    "accumulate_steps_3_of_an_embedding",
    "mask_and_sample_weight",
    "reduction_sum",
    "reduction_mean_with_sample_weight",
    "metrics_with_many_states",
    "overflow_on_one_replica",
    "dataset_of_unknown_length",
    "validation_of_a_repeated_dataset",
]
ON_TWO_REPLICAS = [
    case for case in CASES if case not in {*ALIKE, *ON_TWO_WORKERS, *ON_THREE_WORKERS}
]


@pytest.fixture(scope="module")
def groups(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Running]]:
    """Every group's results by its name; the long ones first, side by side."""
    with_cases = [
        [
            (Group(0), [case for case in CASES if case not in ALIKE]),
            (Group(1, replicas=2), ON_TWO_REPLICAS),
        ],
        [(Group(2), ON_TWO_WORKERS)],
        [(Group(3), ON_THREE_WORKERS), (Group(1, replicas=4), ON_FOUR_REPLICAS)],
    ]
    found = {}
    for side_by_side in with_cases:
        running = [
            group.start(cases, tmp_path_factory.mktemp("group"), LIMIT_S)
            for group, cases in side_by_side
        ]
        for each in running:
            each.wait()
            found[each.group.name] = each
    yield found
    for each in found.values():
        each.stack.close()


CASES_OF_GROUPS = [
    *((case, "2 replicas") for case in ON_TWO_REPLICAS),
    *((case, "4 replicas") for case in ON_FOUR_REPLICAS),
    *((case, "2 workers") for case in ON_TWO_WORKERS),
    *((case, "3 workers") for case in ON_THREE_WORKERS),
]


@pytest.mark.timeout(2 * LIMIT_S)
@pytest.mark.parametrize(("case", "group"), CASES_OF_GROUPS)
def test_many_are_as_one(case: str, group: str, groups: dict[str, Running]) -> None:
    expected = groups["plain Keras"].results(case)[0]
    results = groups[group].results(case)
    difference, where = largest_difference(results[0], expected)
    assert difference <= tolerance(case), where
    for other in results[1:]:  # every worker, bit by bit
        assert largest_difference(other, results[0])[0] == 0


def numbers(kept: tuple[float, ...]) -> dict[str, np.ndarray]:
    return {"loss": np.array(kept)}


def test_differences_are_found() -> None:
    assert largest_difference(numbers((1.0, 2.0)), numbers((1.0, 2.0)))[0] == 0
    assert largest_difference(numbers((1.0, 2.2)), numbers((1.0, 2.0)))[0] == pytest.approx(0.1)
    assert largest_difference(numbers((np.nan,)), numbers((np.nan,)))[0] == 0
    assert largest_difference(numbers((np.nan,)), numbers((1.0,)))[0] == np.inf
    assert largest_difference(numbers((1.0,)), numbers((1.0, 2.0)))[0] == np.inf
    assert largest_difference({}, numbers((1.0,)))[0] == np.inf
