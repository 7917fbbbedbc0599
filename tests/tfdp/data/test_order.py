from __future__ import annotations

import functools
import itertools

import numpy as np
import pytest
import tensorflow as tf

from tfdp.data.order import Order, to_stateless_seed
from tfdp.errors import BadInput

ORDERS = [
    Order(examples, batch_size, seed=8, run_length=run_length)
    for examples, batch_size, run_length in (
        (1, 1, 1),
        (1, 5, 3),
        (2, 1, 1),
        (7, 3, 1),
        (9, 3, 1),
        (10, 64, 1),
        (50, 7, 1),
        (5, 2, 5),  # one run
        (12, 6, 3),  # full runs only
        (13, 4, 3),
        (14, 6, 5),
        (40, 6, 16),  # runs longer than a batch
        (9, 4, 100),  # one run, which is not full
    )
]
REPLICAS = (1, 2, 3, 4, 7)

any_order = pytest.mark.parametrize(
    "order", ORDERS, ids=lambda order: f"{order.examples}-{order.global_batch_size}"
)


@functools.cache
def slices(order: Order, step: int, replicas: int) -> list[list[int]]:
    """The slice of each replica at a step."""
    return [
        order.slice(np.int64(step), np.int64(replica), replicas)[1].numpy().tolist()
        for replica in range(replicas)
    ]


def batch(order: Order, step: int) -> list[int]:
    return slices(order, step, 1)[0]


def epoch(order: Order, number: int = 0) -> list[int]:
    steps = range(number * order.steps_per_epoch, (number + 1) * order.steps_per_epoch)
    return list(itertools.chain(*(batch(order, step) for step in steps)))


@any_order
def test_every_run_comes_once_an_epoch_and_stays_together(order: Order) -> None:
    runs = [
        list(range(first, min(first + order.run_length, order.examples)))
        for first in range(0, order.examples, order.run_length)
    ]
    for number in (0, 1, 5):
        remaining, seen = epoch(order, number), []
        while remaining:
            run = runs[remaining[0] // order.run_length]
            assert remaining[: len(run)] == run
            seen.append(run)
            del remaining[: len(run)]
        assert sorted(seen) == runs


@any_order
def test_any_number_of_replicas_makes_the_same_batches(order: Order) -> None:
    for step in range(order.steps_per_epoch + 1):  # the first of the next epoch too
        for replicas in REPLICAS:
            shares = slices(order, step, replicas)
            assert list(itertools.chain(*shares)) == batch(order, step)
            lengths = [len(share) for share in shares]
            assert max(lengths) - min(lengths) <= 1


@any_order
def test_arithmetic_agrees_with_counting(order: Order) -> None:
    epoch_steps = range(order.steps_per_epoch)
    sizes = [len(batch(order, step)) for step in epoch_steps]
    assert set(sizes[:-1]) <= {order.global_batch_size}
    assert sizes[-1] == order.last_batch_size > 0
    counted = 0
    for step in range(2 * order.steps_per_epoch + 2):
        assert order.examples_before(step) == counted
        size = sizes[step % order.steps_per_epoch]
        assert int(order.batch_size(tf.constant(step, tf.int64))) == size
        counted += size
    for replicas in REPLICAS:
        shares = itertools.chain(*(slices(order, step, replicas) for step in epoch_steps))
        assert (order.smallest_batch_size < replicas) == ([] in shares)


def test_a_slice_comes_with_its_epoch() -> None:
    order = Order(10, 4)
    epochs = [int(order.slice(np.int64(step), np.int64(0), 1)[0]) for step in range(7)]
    assert epochs == [0, 0, 0, 1, 1, 1, 2]


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    seeds = (0, 1, -1, 2**31, 2**32, 2**32 + 1, 2**62, 2**63 - 1, -(2**63))
    orders = {tuple(epoch(Order(50, 50, seed), number)) for seed in seeds for number in range(4)}
    assert len(orders) == 4 * len(seeds)
    assert tuple(range(50)) not in orders


@pytest.mark.parametrize("run_length", [1, 8])
def test_the_order_does_not_depend_on_the_batch_size(run_length: int) -> None:
    orders = [epoch(Order(50, size, seed=5, run_length=run_length), 1) for size in (8, 9, 50)]
    assert orders.count(orders[0]) == 3


@pytest.mark.parametrize(
    ("order", "limit"),  # of chi-squared at p = 0.0001: 19 and 4 degrees of freedom
    [
        (Order(20, 20, seed=11), 51.0),
        (Order(18, 18, seed=2, run_length=4), 23.5),  # the last run is shorter
    ],
)
def test_every_run_is_spread_evenly_over_the_places(order: Order, limit: float) -> None:
    positions = tf.range(order.examples, dtype=tf.int64)

    @tf.function
    def indices(epochs: tf.Tensor) -> tf.Tensor:
        return tf.map_fn(lambda number: order.indices(number, positions), epochs)

    epochs = tf.range(400, dtype=tf.int64)
    runs = -(-order.examples // order.run_length)
    counts = np.zeros((runs, runs))
    for examples in indices(epochs).numpy():
        sequence = list(dict.fromkeys((examples // order.run_length).tolist()))
        counts[sequence, range(runs)] += 1
    expected = len(epochs) / runs
    assert (((counts - expected) ** 2 / expected).sum(axis=1) < limit).all(), counts


@pytest.mark.parametrize("run_length", [1, 3])
def test_without_shuffling_the_order_is_the_sources(run_length: int) -> None:
    order = Order(10, 4, seed=9, shuffle=False, run_length=run_length)
    assert epoch(order, 0) == epoch(order, 3) == list(range(10))
    assert slices(order, 1, 3) == [[4], [5], [6, 7]]


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
    ("sizes", "message"),
    [
        ((0, 4), "the source is empty"),
        ((-1, 4), "the source is empty"),
        ((4, 0), "global_batch_size is 0"),
        ((4, -3), "global_batch_size is -3"),
        ((10, 4, 0, True, 0), "run_length is 0"),
        ((10, 4, 0, True, -1), "run_length is -1"),
    ],
)
def test_sizes_out_of_range_are_refused(sizes: tuple[int, ...], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        Order(*sizes)


def test_single_examples_come_in_the_order_that_they_always_had() -> None:
    # Recorded before runs existed: whoever resumes an old run has to get its order.
    assert epoch(Order(13, 4, seed=8)) == [10, 1, 6, 11, 12, 4, 3, 5, 8, 9, 2, 0, 7]
    assert epoch(Order(13, 4, seed=8), 3) == [0, 12, 4, 1, 9, 2, 7, 11, 3, 10, 5, 8, 6]
    assert epoch(Order(7, 3, seed=-5), 1) == [2, 5, 1, 4, 3, 6, 0]
