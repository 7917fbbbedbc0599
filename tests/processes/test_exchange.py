"""Gradients between real workers, whose collectives are others than those of replicas here."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tests.processes.workers import Workers
from tests.running import run

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
