from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

import tfdp
from tfdp.data import pipeline
from tfdp.data.order import Order
from tfdp.data.pipeline import Batches
from tfdp.workers.collectives import Workers, workers_of

EXAMPLES = 23
ROWS = np.arange(EXAMPLES, dtype=np.int64)


def on_replicas(value: Any, workers: Workers) -> list[Any]:
    return [np.array(local) for local in workers.strategy.experimental_local_results(value)]


def steps_of(batches: Batches, workers: Workers, steps: int) -> list[list[tuple[np.ndarray, ...]]]:
    """For each step, each replica's share of the batch."""
    taken = itertools.islice(batches.iterator(), steps)
    return [
        list(zip(*(counted(leaf, batch.examples, workers) for leaf in batch.data), strict=True))
        for batch in taken
    ]


def counted(leaf: Any, examples: Any, workers: Workers) -> list[Any]:
    """Each replica's rows that count."""
    pairs = zip(on_replicas(leaf, workers), on_replicas(examples, workers), strict=True)
    return [rows[:count] for rows, count in pairs]


def joined(step: list[tuple[np.ndarray, ...]], leaf: int = 0) -> list[Any]:
    return np.concatenate([share[leaf] for share in step]).tolist()


def workers_with(strategies: Any, replicas: int) -> Workers:
    return workers_of(strategies(replicas))


@pytest.mark.parametrize(("replicas", "first_step"), [(1, 0), (1, 7), (3, 7)])
def test_replicas_read_the_global_batches_in_order(
    replicas: int, first_step: int, strategies: Any
) -> None:
    workers, order = workers_with(strategies, replicas), Order(EXAMPLES, 5, seed=6)
    source = tfdp.from_arrays(ROWS, ROWS * 2)
    batches = pipeline.from_source(source, order, workers, first_step=first_step)
    for i, step in enumerate(steps_of(batches, workers, 12)):
        _, expected = order.slice(np.int64(first_step + i), np.int64(0), 1)
        assert joined(step) == expected.numpy().tolist()
        assert joined(step, 1) == (expected * 2).numpy().tolist()
        assert len(step) == replicas
    assert batches.steps_per_epoch == 5
    assert batches.smallest_batch == 3
    for asked, rows in ((2, 2), (40, 5)):  # no more than a batch
        sample = [leaf.numpy().tolist() for leaf in batches.sample(asked)]
        spread = ROWS[:: len(ROWS) // rows][:rows]
        assert sample == [spread.tolist(), (spread * 2).tolist()]
    assert batches.examples_before is not None
    assert batches.examples_before(6) == EXAMPLES + 5
    assert batches.element_spec == (tf.TensorSpec([None], tf.int64),) * 2


def test_batches_keep_their_order_if_one_is_slow(strategies: Any) -> None:
    # Batches are read in parallel, and the first takes longest: it still comes first.
    workers, order = workers_with(strategies, 2), Order(24, 2, shuffle=False)

    class Slow(tfdp.Source):
        def __len__(self) -> int:
            return 24

        def read(self, indices: tf.Tensor) -> Any:
            turns = tf.where(tf.reduce_any(indices == 0), 300, 1)
            work = tf.linalg.matmul(tf.ones((200, 200)), tf.ones((200, 200)))
            _, work = tf.while_loop(
                lambda i, _: i < turns, lambda i, m: (i + 1, tf.tanh(m @ m)), (0, work)
            )
            return (indices + tf.cast(tf.reduce_sum(work) * 0, tf.int64), indices)

    batches = pipeline.from_source(Slow(), order, workers)
    rows = [joined(step) for step in steps_of(batches, workers, 12)]
    assert rows == [[2 * i, 2 * i + 1] for i in range(12)]


def with_seed(features: tf.Tensor, training: bool, seed: tf.Tensor) -> Any:
    return {
        "index": features,
        "training": tf.constant(training),
        "draw": tf.random.stateless_uniform([], seed),
        "seed": seed,
    }


def seeds(strategies: Any, replicas: int, batch_size: int, seed: int = 6) -> dict[Any, Any]:
    """The seed that ``preprocess`` received for each (epoch, example) of two epochs."""
    workers, order = workers_with(strategies, replicas), Order(EXAMPLES, batch_size, seed=seed)
    batches = pipeline.from_source(tfdp.from_arrays(ROWS), order, workers, preprocess=with_seed)
    received = {}
    taken = itertools.islice(batches.iterator(), 2 * order.steps_per_epoch)
    for step, (batch, *_) in enumerate(taken):
        leaves = {
            name: np.concatenate(on_replicas(value, workers)) for name, value in batch.items()
        }
        assert leaves["training"].all()
        epoch = step // order.steps_per_epoch
        for index, draw, pair in zip(leaves["index"], leaves["draw"], leaves["seed"], strict=True):
            received[epoch, int(index)] = (float(draw), tuple(pair.tolist()))
    return received


def test_seeds_depend_on_example_and_epoch_but_not_on_replicas(strategies: Any) -> None:
    one = seeds(strategies, replicas=1, batch_size=5)
    assert len(one) == 2 * EXAMPLES
    assert len(set(one.values())) == 2 * EXAMPLES, "another seed for each example and epoch"
    assert seeds(strategies, replicas=3, batch_size=8) == one
    assert not set(seeds(strategies, 1, 5, seed=7).values()) & set(one.values())


def test_preprocess_takes_structures_one_example_at_a_time(strategies: Any) -> None:
    features = {"a": np.ones((4, 3), np.uint8), "b": np.array(["x", "y", "z", ""])}

    def preprocess(example: Any, training: bool, seed: tf.Tensor) -> Any:
        assert example["a"].shape == [3]
        assert example["b"].shape == []
        assert seed.shape == [2]
        return tf.cast(example["a"], tf.float32), tf.strings.length(example["b"])

    workers = workers_with(strategies, 1)
    batches = pipeline.from_source(
        tfdp.from_arrays(features, ROWS[:4]), Order(4, 2), workers, preprocess=preprocess
    )
    assert batches.element_spec == (
        (tf.TensorSpec([None, 3], tf.float32), tf.TensorSpec([None], tf.int32)),
        tf.TensorSpec([None], tf.int64),
    )
    (_, lengths), labels = next(batches.iterator()).data
    expected = dict(enumerate([1, 1, 1, 0]))
    assert lengths.numpy().tolist() == [expected[label] for label in labels.numpy().tolist()]


def test_a_dataset_is_resumed_at_a_step(strategies: Any) -> None:
    workers, first_step = workers_with(strategies, 2), 4
    dataset = tf.data.Dataset.from_tensor_slices((ROWS, ROWS)).batch(8)  # 8, 8 and 7
    batches = pipeline.from_dataset(dataset, workers, first_step=first_step)
    assert batches.steps_per_epoch == 3
    assert batches.examples_before is None
    rows = [joined(step) for step in steps_of(batches, workers, 5)]
    plain = [batch[0].numpy().tolist() for batch in dataset] * 4
    assert rows == plain[first_step : first_step + 5]


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        (tf.data.Dataset.range(0).batch(2), "the dataset is empty"),
        (tf.data.Dataset.range(4).batch(2).repeat(), "never ends.*steps_per_epoch"),
    ],
)
def test_a_dataset_without_a_length_is_refused(dataset: Any, message: str, strategies: Any) -> None:
    with pytest.raises(tfdp.BadInput, match=message):
        pipeline.from_dataset(dataset, workers_with(strategies, 1))


def test_a_dataset_of_unknown_length_is_counted(strategies: Any, capfd: Any) -> None:
    dataset = tf.data.Dataset.range(10).filter(lambda n: n != 3).batch(2)
    batches = pipeline.from_dataset(dataset.map(lambda n: (n,)), workers_with(strategies, 1))
    assert batches.steps_per_epoch == 5
    assert "counting the dataset" in capfd.readouterr().err


def test_a_dataset_is_preprocessed_by_step_and_place(strategies: Any) -> None:
    workers = workers_with(strategies, 2)
    dataset = tf.data.Dataset.from_tensor_slices((ROWS, ROWS)).batch(8)

    def draws(first_step: int) -> list[list[float]]:
        batches = pipeline.from_dataset(
            dataset, workers, first_step=first_step, preprocess=with_seed, seed=5
        )
        taken = itertools.islice(batches.iterator(), 6 - first_step)
        return [
            np.concatenate(on_replicas(batch.data[0]["draw"], workers)).tolist() for batch in taken
        ]

    all_draws = draws(0)
    flat = list(itertools.chain(*all_draws))
    assert len(set(flat)) == len(flat) == 2 * EXAMPLES
    assert draws(2) == all_draws[2:]


@pytest.mark.parametrize("policy", ["auto", "file", "data", "off"])
def test_a_sharding_policy_is_the_datasets_option(policy: Any) -> None:
    options = pipeline.with_auto_shard_policy(tf.data.Dataset.range(3), policy).options()
    assert options.experimental_distribute.auto_shard_policy.name == policy.upper()


def test_without_a_policy_the_datasets_own_stays() -> None:
    dataset = pipeline.with_auto_shard_policy(tf.data.Dataset.range(3), "off")
    assert pipeline.with_auto_shard_policy(dataset, None) is dataset


def test_sharding_by_file_is_refused_with_preprocess(strategies: Any) -> None:
    dataset = tf.data.Dataset.from_tensor_slices((ROWS, ROWS)).batch(8)
    with pytest.raises(tfdp.BadInput, match="auto_shard=file does not go with preprocess"):
        pipeline.from_dataset(
            dataset, workers_with(strategies, 1), auto_shard="file", preprocess=with_seed
        )


def test_a_sample_of_a_dataset_is_its_first_rows_and_changes_nothing(strategies: Any) -> None:
    workers = workers_with(strategies, 2)

    def shuffled() -> tf.data.Dataset:
        return tf.data.Dataset.from_tensor_slices((ROWS, ROWS)).shuffle(EXAMPLES, seed=3).batch(8)

    plain = [batch[0].numpy().tolist() for batch in shuffled().repeat(2)]
    batches = pipeline.from_dataset(shuffled(), workers)
    for rows in (2, 40):
        assert [leaf.numpy().tolist() for leaf in batches.sample(rows)] == [plain[0][:rows]] * 2
    assert [joined(step) for step in steps_of(batches, workers, 6)] == plain


def element_of(batches: Batches) -> Any:
    """The data of a step, with the names of types in place of tensors."""
    data = next(batches.iterator()).data
    return tf.nest.map_structure(lambda leaf: "tensor", data)


@pytest.mark.parametrize(
    ("element", "expected"),
    [
        (lambda n: n, "tensor"),
        (lambda n: (n,), ("tensor",)),
        (lambda n: {"a": n}, {"a": "tensor"}),
        (lambda n: (n, n), ("tensor", "tensor")),
        (lambda n: ((n, n),), (("tensor", "tensor"),)),
        (lambda n: (n, n, n, n), ("tensor",) * 4),
    ],
)
@pytest.mark.parametrize("preprocess", [None, lambda features, training, seed: features])
def test_elements_of_a_dataset_keep_their_structure(
    element: Any, expected: Any, preprocess: Any, strategies: Any
) -> None:
    dataset = tf.data.Dataset.from_tensor_slices(ROWS).map(element).batch(8)
    workers = workers_with(strategies, 1)
    batches = pipeline.from_dataset(dataset, workers, preprocess=preprocess)
    assert element_of(batches) == expected
    tf.nest.assert_same_structure(batches.element_spec, dataset.element_spec)
    evaluated = pipeline.for_evaluation(dataset, workers, None, preprocess, None)
    assert element_of(evaluated) == expected
    tf.nest.assert_same_structure(batches.sample(2), dataset.element_spec)


@pytest.mark.parametrize(
    ("features", "expected"), [(ROWS, "tensor"), ([ROWS, ROWS], (("tensor", "tensor"),))]
)
def test_features_alone_are_what_keras_gives_to_train_step(
    features: Any, expected: Any, strategies: Any
) -> None:
    workers, source = workers_with(strategies, 1), tfdp.from_arrays(features)
    batches = pipeline.from_source(source, Order(EXAMPLES, 8), workers)
    assert element_of(batches) == expected
    tf.nest.assert_same_structure(batches.element_spec, batches.sample(2))


def test_a_dataset_that_turns_out_to_be_empty_is_refused(strategies: Any) -> None:
    with pytest.raises(tfdp.BadInput, match="the dataset is empty"):
        pipeline.from_dataset(
            tf.data.Dataset.range(0).batch(2), workers_with(strategies, 1), steps_per_epoch=3
        )
