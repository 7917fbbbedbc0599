"""Gradients between real workers, whose collectives are others than those of replicas here."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tests.processes.workers import Workers
from tests.running import run

# Sums of what each worker has of its own, three times over, and how they are come by.
SUMS = """
import json, os, sys
import numpy as np, tensorflow as tf, tfdp
from tests.processes.test_exchange import given
from tfdp.step.all_reduce import all_reduce_sum

strategy = tfdp.connect()
index = json.loads(os.environ["TF_CONFIG"])["task"]["index"]

@tf.function
def add_up(mine):
    def on_replica(*mine):
        return [all_reduce_sum(tf.identity(each)) for each in mine]

    return strategy.run(on_replica, args=mine)

for _ in range(3):
    totals = [each.numpy() for each in add_up(given(index))]
np.savez(f"{sys.argv[1]}/{index}.npz", *totals)
graph = add_up.get_concrete_function(given(index)).graph.as_graph_def()
nodes = [*graph.node, *(node for function in graph.library.function for node in function.node_def)]
print("gathers", sum(node.op == "CollectiveGatherV2" for node in nodes))
"""
SHAPES = [((), "float32"), ((), "int64"), ((7, 5), "float64"), ((98_304,), "float32")]
LARGE = [((98_305,), "float32"), ((3, 40_000), "float32")]  # more than 3/2 of 256 KiB


def given(index: int) -> list[np.ndarray]:
    """Of SHAPES and LARGE, what a worker has to add."""
    random = np.random.default_rng(index)
    return [(1000 * random.standard_normal(shape)).astype(dtype) for shape, dtype in SHAPES + LARGE]


# One update of an embedding and a dense layer; the weights go to a file for each worker.
SCRIPT = """
import json, os, sys
import keras, numpy as np, tfdp

strategy = tfdp.connect()
keras.utils.set_random_seed(1)
with strategy.scope():
    layers = [keras.layers.Embedding(9, 4), keras.layers.Flatten(), keras.layers.Dense(3)]
    model = keras.Sequential([keras.layers.Input((2,), dtype="int32"), *layers])
    model.compile(keras.optimizers.SGD(1.0), "mse")
words = np.arange(16, dtype=np.int32).reshape(8, 2) % 9
tfdp.fit(
    model, words, np.ones((8, 3)), batch_size=8, epochs=1, verbose=0, gradient_dtype="bfloat16"
)
index = json.loads(os.environ.get("TF_CONFIG", '{"task": {"index": 0}}'))["task"]["index"]
np.savez(f"{sys.argv[1]}/{index}.npz", *model.get_weights())
"""


def weights(path: Path) -> list[np.ndarray]:
    with np.load(path) as saved:
        return [saved[name] for name in sorted(saved)]


def test_bfloat16_goes_between_workers_but_for_embeddings(tmp_path: Path) -> None:
    alone = tmp_path / "alone"
    alone.mkdir()
    run(["python", "-c", SCRIPT, str(alone)], expect=0)
    with Workers([["python", "-c", SCRIPT, str(tmp_path)]] * 2, limit_s=100) as workers:
        workers.wait(0, 0)
    expected = weights(alone / "0.npz")
    ours, others = (weights(tmp_path / f"{index}.npz") for index in (0, 1))
    for place, (mine, theirs, exact) in enumerate(zip(ours, others, expected, strict=True)):
        np.testing.assert_array_equal(mine, theirs)
        is_embedding = place == 0
        np.testing.assert_allclose(mine, exact, rtol=0, atol=1e-6 if is_embedding else 0.02)
    assert any(
        np.abs(mine - exact).max() > 1e-5 for mine, exact in zip(ours, expected, strict=True)
    )


def test_small_sums_are_gathered_and_have_the_same_bits_everywhere(tmp_path: Path) -> None:
    with Workers([["python", "-c", SUMS, str(tmp_path)]] * 3, limit_s=100) as workers:
        outputs = workers.wait(0, 0, 0)
    of_all = [weights(tmp_path / f"{index}.npz") for index in range(3)]
    for place, (first, second, third) in enumerate(zip(*map(given, range(3)), strict=True)):
        totals = [each[place] for each in of_all]
        assert {(each.dtype, each.shape) for each in totals} == {(first.dtype, first.shape)}
        assert len({each.tobytes() for each in totals}) == 1
        if place < len(SHAPES):  # in the workers' order
            np.testing.assert_array_equal(totals[0], first + second + third)
        else:
            np.testing.assert_allclose(totals[0], first + second + third, rtol=1e-5, atol=1e-3)
    assert all(f"gathers {len(SHAPES)}\n" in output for output in outputs)
