"""N are one: tfdp on N computes what plain Keras computes in one process.

The cases are in ``tests/exactness``; ``docs/exactness.md`` has all of them on all numbers, and
``make exactness`` computes them. Some of each kind are computed here: on workers if they may do
something else than replicas of one process, and on three workers if some of them have to be without
an example.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from tests.exactness.groups import Group, Running, largest_difference
from tests.exactness.run import tolerance

LIMIT_S = 400.0

ON_TWO_REPLICAS = [
    # kinds of models, optimizers, accumulation, precision
    *("convolutional", "mixed_float16"),
    # losses and metrics
    *("two_losses_two_reductions_and_weights", "metrics_with_many_states"),
]
ON_TWO_WORKERS = [
    *("overridden_train_step", "overflow_on_one_replica", "mask", "dataset_of_unknown_length"),
]
ON_THREE_WORKERS = ["fewer_examples_than_replicas"]
GROUPS = {
    Group(1, replicas=2): ON_TWO_REPLICAS,
    Group(2): ON_TWO_WORKERS,
    Group(3): ON_THREE_WORKERS,
}
CASES = [(case, group.name) for group, cases in GROUPS.items() for case in cases]


@pytest.fixture(scope="module")
def groups(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Running]]:
    """The results of all groups by their names, computed by two or three processes at a time."""
    plain = (Group(0), [case for case, _ in CASES])
    replicas, two, three = GROUPS.items()
    finished = {}
    for at_once in ([plain, replicas], [two], [three]):
        running = [
            group.start(cases, tmp_path_factory.mktemp("group"), LIMIT_S)
            for group, cases in at_once
        ]
        for each in running:
            each.wait()
            finished[each.group.name] = each
    yield finished
    for each in finished.values():
        each.stack.close()


@pytest.mark.timeout(2 * LIMIT_S)
@pytest.mark.parametrize(("case", "group"), CASES)
def test_many_are_as_one(case: str, group: str, groups: dict[str, Running]) -> None:
    expected = groups["plain Keras"].results(case)[0]
    results = groups[group].results(case)
    difference, where = largest_difference(results[0], expected)
    assert difference <= tolerance(case), where
    for other in results[1:]:  # every worker, bit by bit
        assert largest_difference(other, results[0])[0] == 0


@pytest.mark.parametrize(
    ("ours", "theirs", "difference"),
    [
        ([1.0, 2.0], [1.0, 2.0], 0),
        ([1.0, 2.2], [1.0, 2.0], 0.1),
        ([np.nan], [np.nan], 0),
        ([np.nan], [1.0], np.inf),
        ([1.0], [1.0, 2.0], np.inf),
        (None, [1.0], np.inf),
    ],
)
def test_differences_are_found(ours: list[float] | None, theirs: list[float], difference: float):
    results = [{"loss": np.array(each)} if each else {} for each in (ours, theirs)]
    assert largest_difference(*results)[0] == pytest.approx(difference)
