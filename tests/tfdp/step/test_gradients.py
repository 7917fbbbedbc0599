"""Gradients are all-reduced in packs, last layer first, and are the sums that NumPy computes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import ml_dtypes
import numpy as np
import pytest
import tensorflow as tf

import tfdp
from tfdp.step import all_reduce
from tfdp.step.gradients import GradientAllReduce

Strategies = Any
SHAPES = [(5, 3), (3,), (), (9, 2, 2), (7,)]  # of the first layer first, bytes 60, 12, 4, 144, 28


def on_replicas(
    strategy: tf.distribute.Strategy, gradients: GradientAllReduce, dtype: type = np.float32
) -> tuple[list[list[np.ndarray]], list[np.ndarray]]:
    """What each replica gives of gradients and one statistic, and what the first gets."""
    random = np.random.default_rng(0)
    given = [
        [np.asarray(random.normal(size=shape), dtype) for shape in SHAPES]
        for _ in range(strategy.num_replicas_in_sync)
    ]

    def on_replica() -> list[tf.Tensor]:
        number = tf.distribute.get_replica_context().replica_id_in_sync_group
        mine = [tf.constant(np.stack(each))[number] for each in zip(*given, strict=True)]
        return gradients.sum(mine[:-1], mine[-1:])

    results = tf.function(lambda: strategy.run(on_replica))()
    first = [strategy.experimental_local_results(each)[0].numpy() for each in results]
    return given, first


@pytest.mark.parametrize("bytes_per_pack", [1, 50, 72, 1000])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_sums_are_of_all_replicas_whatever_the_packs(
    bytes_per_pack: int, dtype: type, strategies: Strategies
) -> None:
    given, totals = on_replicas(
        strategies(3), GradientAllReduce(bytes_per_pack=bytes_per_pack), dtype
    )
    for ours, theirs in zip(totals, map(sum, zip(*given, strict=True)), strict=True):
        assert (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape)
        np.testing.assert_allclose(ours, theirs, rtol=1e-6)


@pytest.mark.parametrize(
    ("bytes_per_pack", "sent"),
    [
        (1000, [7 + 36 + 1 + 3 + 15]),
        (140, [7 + 16, 20 + 1 + 3, 15]),  # 9 rows of 4 numbers, cut in two
        (72, [7, 12, 12, 12 + 1 + 3, 15]),
    ],
)
def test_the_last_layer_is_sent_first(
    bytes_per_pack: int,
    sent: list[int],
    strategies: Strategies,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[int] = []
    all_reduce_sum = all_reduce.all_reduce_sum

    def noting(value: tf.Tensor) -> tf.Tensor:
        seen.append(value.shape.num_elements())
        return all_reduce_sum(value)

    monkeypatch.setattr(all_reduce, "all_reduce_sum", noting)
    on_replicas(strategies(3), GradientAllReduce(bytes_per_pack=bytes_per_pack))
    assert seen == [numbers for numbers in sent for _ in range(3)]  # each replica's


def test_bfloat16_rounds_what_is_sent_and_nothing_else(strategies: Strategies) -> None:
    gradients = GradientAllReduce("bfloat16", bytes_per_pack=30)
    given, totals = on_replicas(strategies(2), gradients)
    for place, ours in enumerate(totals):
        one, other = (each[place] for each in given)
        rounded = [each.astype(ml_dtypes.bfloat16) for each in (one, other)]
        is_gradient = place < len(SHAPES) - 1
        expected = (rounded[0] + rounded[1]).astype(np.float32) if is_gradient else one + other
        np.testing.assert_array_equal(ours, expected)


def test_rows_of_an_embedding_are_not_rounded(strategies: Strategies) -> None:
    rows = np.array([[1.001, 2.0], [3.0, 4.003]], np.float32)

    def on_replica() -> Any:
        gradient = tf.IndexedSlices(tf.constant(rows), tf.constant([2, 0]), tf.constant([3, 2]))
        (total,) = GradientAllReduce("bfloat16", bytes_per_pack=8).sum([gradient], [])
        return tf.convert_to_tensor(total)

    total = tf.function(lambda: strategies(3).run(on_replica))()
    ours = strategies(3).experimental_local_results(total)[0].numpy()
    np.testing.assert_allclose(ours, [3 * rows[1], [0, 0], 3 * rows[0]], rtol=1e-6)


def test_packs_do_not_wait_for_an_embedding(
    strategies: Strategies, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[bool] = []
    all_reduce_sum = all_reduce.all_reduce_sum

    def noting(value: Any) -> Any:
        seen.append(isinstance(value, tf.IndexedSlices))
        return all_reduce_sum(value)

    def on_replica() -> list[Any]:
        rows = tf.IndexedSlices(tf.ones([2, 2]), tf.constant([2, 0]), tf.constant([3, 2]))
        first, second = GradientAllReduce(bytes_per_pack=4).sum([rows, tf.ones([2])], [])
        return [tf.convert_to_tensor(first), second]

    monkeypatch.setattr(all_reduce, "all_reduce_sum", noting)
    totals = tf.function(lambda: strategies(3).run(on_replica))()
    assert seen == [is_sparse for is_sparse in (False, False, True) for _ in range(3)]
    first, second = (strategies(3).experimental_local_results(each)[0].numpy() for each in totals)
    np.testing.assert_array_equal(first, [[3, 3], [0, 0], [3, 3]])
    np.testing.assert_array_equal(second, [3, 3])


def model_of(strategy: tf.distribute.Strategy) -> keras.Model:
    keras.utils.set_random_seed(0)
    with strategy.scope():
        layers = [keras.layers.Dense(16, activation="tanh"), keras.layers.Dense(3)]
        model = keras.Sequential([keras.layers.Input((8,)), *layers])
        model.compile(keras.optimizers.SGD(0.1, momentum=0.9), "mse")
    return model


def losses(strategy: tf.distribute.Strategy, **options: Any) -> tuple[Sequence[float], bytes]:
    random = np.random.default_rng(3)
    rows = random.normal(size=(96, 8)).astype(np.float32)
    targets = np.tanh(rows @ random.normal(size=(8, 3))).astype(np.float32)
    model = model_of(strategy)
    history = tfdp.fit(model, rows, targets, batch_size=16, epochs=8, verbose=0, **options).history[
        "loss"
    ]
    return history, b"".join(weight.tobytes() for weight in model.get_weights())


def test_in_bfloat16_a_model_learns_as_in_float32(strategies: Strategies) -> None:
    precise, bits = losses(strategies(3))
    rough, rough_bits = losses(strategies(3), gradient_dtype="bfloat16")
    assert precise[-1] < 0.4 * precise[0]
    np.testing.assert_allclose(rough, precise, rtol=0.02)
    assert rough_bits != bits
    assert losses(strategies(3), gradient_dtype="bfloat16")[1] == rough_bits


def test_alone_nothing_is_sent_and_nothing_rounded(strategies: Strategies) -> None:
    assert losses(strategies(1), gradient_dtype="bfloat16") == losses(strategies(1))


def test_the_pack_size_follows_from_model_and_replicas(strategies: Strategies) -> None:
    model = keras.Sequential([keras.layers.Input((255,)), keras.layers.Dense(4096)])
    sent = 256 * 4096 * 4
    assert (
        GradientAllReduce().with_pack_size(model, 4).bytes_per_pack
        == (sent * 4 << 18) ** 0.5
        == 2 << 20
    )
    assert GradientAllReduce().with_pack_size(model, 16).bytes_per_pack == 4 << 20
    half = GradientAllReduce("bfloat16").with_pack_size(model, 2)
    assert half == GradientAllReduce("bfloat16", 1 << 20)
    assert GradientAllReduce(bytes_per_pack=7).with_pack_size(model, 9).bytes_per_pack == 7
    assert GradientAllReduce().with_pack_size(model, 1).bytes_per_pack is None
    model.trainable = False
    assert GradientAllReduce().with_pack_size(model, 2).bytes_per_pack == 1


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"gradient_dtype": "float16"}, "gradient_dtype is float16"),
        ({"bytes_per_pack": 0}, "bytes_per_pack is 0"),
    ],
)
def test_values_out_of_range_are_refused(bad: dict[str, Any], message: str) -> None:
    with pytest.raises(tfdp.BadInput, match=message):
        tfdp.fit(model_of(tf.distribute.get_strategy()), np.ones((4, 8)), np.ones((4, 3)), **bad)
