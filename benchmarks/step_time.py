"""Time of a step: a tiny model in one process and on two workers, in alternating rounds.

    python -m benchmarks.step_time [rounds]

Each process is pinned to one core. Prints medians and spread, ratios first; with few cores, or
other work on them, only ratios mean something.
"""

from __future__ import annotations

import sys

from benchmarks import measuring
from benchmarks.measuring import EpochTimes, Spread

EXAMPLES, WIDTH, BATCH, STEPS = 8192, 32, 32, 2000  # batch per worker, steps per epoch


def worker() -> None:
    """Trains the tiny model and reports seconds per step."""
    import keras
    import numpy as np

    import tfdp

    strategy = tfdp.connect()
    keras.utils.set_random_seed(0)
    with strategy.scope():
        layers = [keras.layers.Dense(WIDTH, activation="relu") for _ in range(2)]
        model = keras.Sequential([keras.layers.Input((WIDTH,)), *layers, keras.layers.Dense(10)])
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile("sgd", loss, metrics=["accuracy"])
    rng = np.random.default_rng(0)
    data = tfdp.from_arrays(rng.standard_normal((EXAMPLES, WIDTH)), rng.integers(0, 10, EXAMPLES))

    times = EpochTimes()
    clock = keras.callbacks.LambdaCallback(on_epoch_end=times.record)
    batch = BATCH * strategy.num_replicas_in_sync
    tfdp.fit(
        model, data, batch_size=batch, epochs=4, steps_per_epoch=STEPS, verbose=0, callbacks=[clock]
    )
    if tfdp.is_chief():
        measuring.report(step_s=times.step_s(STEPS))


def measure(workers: int) -> float:
    """Runs the workers and returns the chief's milliseconds per step."""
    command = [sys.executable, "-m", "benchmarks.step_time", "worker"]
    outputs = measuring.run_pinned([command] * workers, measuring.tf_configs(workers))
    return 1000 * float(measuring.reports_in(outputs[0])[0]["step_s"])


def main() -> None:
    """Alternates between one process and two workers."""
    rounds = measuring.rounds_argument(__doc__, default=3)
    steps_ms: dict[int, list[float]] = {1: [], 2: []}
    for _ in range(rounds):
        for workers, of_workers in steps_ms.items():
            of_workers.append(measure(workers))
    spreads = {workers: Spread.of(of_workers) for workers, of_workers in steps_ms.items()}
    one, two = spreads[1].median, spreads[2].median
    print(
        f"two workers over one: {two / one:.2f} times the step, {2 * one / two:.2f} the examples/s"
    )
    for workers, spread in spreads.items():
        print(f"{workers} worker(s): {spread.text(3)} ms a step")


if __name__ == "__main__":
    worker() if sys.argv[1:] == ["worker"] else main()
