from __future__ import annotations

import itertools

import numpy as np
import pytest
import tensorflow as tf

from tfdp.data.order import Order, to_stateless_seed
from tfdp.errors import BadInput

SIZES = [  # examples, global batch size
    (1, 1),
    (1, 5),
    (2, 1),
    (7, 3),
    (9, 3),
    (10, 64),
    (13, 4),
    (100, 7),
]
REPLICAS = (1, 2, 3, 4, 7)


def slices(order: Order, step: int, replicas: int) -> list[list[int]]:
    """What each replica reads at a step."""
    return [
        order.slice(np.int64(step), np.int64(replica), replicas)[1].numpy().tolist()
        for replica in range(replicas)
    ]


def batch(order: Order, step: int, replicas: int = 1) -> list[int]:
    return list(itertools.chain(*slices(order, step, replicas)))


def epoch(order: Order, number: int = 0) -> list[int]:
    steps = range(number * order.steps_per_epoch, (number + 1) * order.steps_per_epoch)
    return list(itertools.chain(*(batch(order, step) for step in steps)))


@pytest.mark.parametrize(("examples", "batch_size"), SIZES)
def test_every_example_comes_once_an_epoch(examples: int, batch_size: int) -> None:
    order = Order(examples, batch_size, seed=3)
    for number in (0, 1, 5):
        assert sorted(epoch(order, number)) == list(range(examples))


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize(("examples", "batch_size"), SIZES)
def test_any_number_of_replicas_makes_the_same_batches(
    examples: int, batch_size: int, shuffle: bool
) -> None:
    order = Order(examples, batch_size, seed=8, shuffle=shuffle)
    for step in range(order.steps_per_epoch + 1):  # one of the next epoch too
        expected = batch(order, step)
        for replicas in REPLICAS:
            parts = slices(order, step, replicas)
            assert list(itertools.chain(*parts)) == expected
            lengths = [len(part) for part in parts]
            assert max(lengths) - min(lengths) <= 1


@pytest.mark.parametrize(("examples", "batch_size"), SIZES)
def test_batches_are_full_but_for_the_last(examples: int, batch_size: int) -> None:
    order = Order(examples, batch_size)
    sizes = [len(batch(order, step)) for step in range(order.steps_per_epoch)]
    assert set(sizes[:-1]) <= {batch_size}
    assert sizes[-1] == order.last_batch_size == examples - sum(sizes[:-1]) > 0


@pytest.mark.parametrize(("examples", "batch_size"), SIZES)
def test_arithmetic_agrees_with_counting(examples: int, batch_size: int) -> None:
    order = Order(examples, batch_size)
    counted = 0
    for step in range(2 * order.steps_per_epoch + 2):
        assert order.examples_before(step) == counted
        assert int(order.batch_size(tf.constant(step, tf.int64))) == len(batch(order, step))
        counted += len(batch(order, step))
    for replicas in REPLICAS:
        lengths = [
            [len(part) for part in slices(order, step, replicas)]
            for step in range(order.steps_per_epoch)
        ]
        assert order.has_empty_share(replicas) == any(0 in each for each in lengths)


def test_the_epoch_of_a_step_is_told() -> None:
    order = Order(10, 4)
    epochs = [int(order.slice(np.int64(step), np.int64(0), 1)[0]) for step in range(7)]
    assert epochs == [0, 0, 0, 1, 1, 1, 2]


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    seeds = (0, 1, -1, 2**31, 2**32, 2**32 + 1, 2**62, 2**63 - 1, -(2**63))
    orders = {tuple(epoch(Order(50, 50, seed), number)) for seed in seeds for number in range(4)}
    assert len(orders) == 4 * len(seeds)
    assert tuple(range(50)) not in orders


def test_the_same_seed_gives_the_same_order() -> None:
    assert epoch(Order(50, 8, seed=-5), 2) == epoch(Order(50, 8, seed=-5), 2)


def test_the_order_does_not_depend_on_the_batch_size() -> None:
    assert epoch(Order(50, 8, seed=5), 1) == epoch(Order(50, 50, seed=5), 1)


def test_places_of_an_example_are_spread_over_the_epoch() -> None:
    # Example 0 in 400 epochs of 20: each place is expected 20 times; chi-squared with 19 degrees.
    order = Order(20, 20, seed=11)
    places = [epoch(order, number).index(0) for number in range(400)]
    counts = np.bincount(places, minlength=20)
    assert ((counts - 20) ** 2 / 20).sum() < 50  # p = 0.0001


def test_without_shuffling_the_order_is_the_sources() -> None:
    order = Order(10, 4, seed=9, shuffle=False)
    assert epoch(order, 0) == epoch(order, 3) == list(range(10))


@pytest.mark.parametrize(
    ("seed", "words"),
    [
        (0, [0, 0]),
        (1, [1, 0]),
        (2**31, [-(2**31), 0]),
        (2**32, [0, 1]),
        (2**63 - 1, [-1, 2**31 - 1]),
        (-1, [-1, -1]),
        (-(2**63), [0, -(2**31)]),
    ],
)
def test_a_seed_becomes_two_words(seed: int, words: list[int]) -> None:
    assert to_stateless_seed(seed).dtype == tf.int32
    assert to_stateless_seed(seed).numpy().tolist() == words


@pytest.mark.parametrize(
    ("examples", "batch_size", "said"),
    [
        (0, 4, "the source is empty"),
        (-1, 4, "the source is empty"),
        (4, 0, "global_batch_size is 0"),
        (4, -3, "global_batch_size is -3"),
    ],
)
def test_impossible_sizes_are_refused(examples: int, batch_size: int, said: str) -> None:
    with pytest.raises(BadInput, match=said):
        Order(examples, batch_size)


RUNS = [(1, 3), (5, 5), (12, 3), (13, 3), (14, 5), (40, 16), (9, 100), (100, 7), (64, 1)]


def test_single_examples_come_in_the_order_that_they_always_had() -> None:
    # Written down when runs did not exist: who resumes an old run has to see its order.
    assert epoch(Order(13, 4, seed=8)) == [10, 1, 6, 11, 12, 4, 3, 5, 8, 9, 2, 0, 7]
    assert epoch(Order(13, 4, seed=8), 3) == [0, 12, 4, 1, 9, 2, 7, 11, 3, 10, 5, 8, 6]
    assert epoch(Order(7, 3, seed=-5), 1) == [2, 5, 1, 4, 3, 6, 0]


@pytest.mark.parametrize(("examples", "run_length"), RUNS)
def test_runs_stay_together_and_come_once_an_epoch(examples: int, run_length: int) -> None:
    runs = [
        list(range(first, min(first + run_length, examples)))
        for first in range(0, examples, run_length)
    ]
    for number in (0, 1, 7):
        order = Order(examples, 4, seed=3, run_length=run_length)
        left, seen = epoch(order, number), []
        while left:
            run = runs[left[0] // run_length]
            assert left[: len(run)] == run
            seen.append(run)
            del left[: len(run)]
        assert sorted(seen) == runs


@pytest.mark.parametrize(("examples", "run_length"), RUNS)
def test_any_number_of_replicas_makes_the_same_batches_of_runs(
    examples: int, run_length: int
) -> None:
    order = Order(examples, 6, seed=8, run_length=run_length)
    for step in range(order.steps_per_epoch + 1):
        expected = batch(order, step)
        for replicas in REPLICAS:
            assert batch(order, step, replicas) == expected


def test_the_order_of_runs_does_not_depend_on_the_batch_size() -> None:
    orders = [epoch(Order(50, size, seed=5, run_length=8), 1) for size in (1, 8, 9, 50)]
    assert orders.count(orders[0]) == 4


def test_every_run_takes_every_place_the_shorter_last_one_too() -> None:
    # 5 runs in 300 epochs: each place is expected 60 times; chi-squared with 4 degrees.
    order = Order(18, 18, seed=2, run_length=4)
    firsts = [[each // 4 for each in epoch(order, number)] for number in range(300)]
    for run in range(5):
        places = [list(dict.fromkeys(each)).index(run) for each in firsts]
        counts = np.bincount(places, minlength=5)
        assert ((counts - 60) ** 2 / 60).sum() < 23.5, (run, counts)  # p = 0.0001


def test_runs_without_shuffling_are_in_the_sources_order() -> None:
    assert epoch(Order(10, 4, shuffle=False, run_length=3), 2) == list(range(10))


@pytest.mark.parametrize("run_length", [0, -1])
def test_impossible_runs_are_refused(run_length: int) -> None:
    with pytest.raises(BadInput, match=f"run_length is {run_length}"):
        Order(10, 4, run_length=run_length)
