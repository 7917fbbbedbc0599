"""Time of a step: a tiny model on one process and on two workers, side by side, in rounds.

    python benchmarks/step_time.py [rounds]

Each process is pinned to one core. Prints medians and spread, ratios first; with few cores, or
others at work on them, only ratios mean something.
"""

from __future__ import annotations

import json
import os
import socket
import statistics
import subprocess
import sys
import time

EXAMPLES, WIDTH, BATCH, STEPS = 8192, 32, 32, 2000  # batch per worker


def worker() -> None:
    """Trains the tiny model and prints milliseconds per step of a steady stretch."""
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

    ends: list[float] = []
    clock = keras.callbacks.LambdaCallback(on_epoch_end=lambda *_: ends.append(time.perf_counter()))
    batch = BATCH * strategy.num_replicas_in_sync
    tfdp.fit(
        model, data, batch_size=batch, epochs=4, steps_per_epoch=STEPS, verbose=0, callbacks=[clock]
    )
    if tfdp.is_chief():
        print(json.dumps(1000 * (ends[-1] - ends[1]) / (2 * STEPS)))


def measure(workers: int) -> float:
    """Runs the workers and returns the chief's milliseconds per step."""
    ports = []
    for _ in range(workers):
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            ports.append(listener.getsockname()[1])
    addresses = [f"127.0.0.1:{port}" for port in ports]
    processes = []
    for index in range(workers):
        config = {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": index}}
        env = os.environ | ({"TF_CONFIG": json.dumps(config)} if workers > 1 else {})
        core = str(index % (os.cpu_count() or 1))
        command = ["taskset", "-c", core, sys.executable, __file__, "worker"]
        processes.append(
            subprocess.Popen(
                command, env=env, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
            )
        )
    outputs = [process.communicate(timeout=300)[0] for process in processes]
    return float(outputs[0])


def main(rounds: int) -> None:
    """Alternates between one process and two workers."""
    times: dict[int, list[float]] = {1: [], 2: []}
    for _ in range(rounds):
        for workers, found in times.items():
            found.append(measure(workers))
    one, two = (statistics.median(found) for found in times.values())
    print(
        f"two workers over one: {two / one:.2f} times the step, {2 * one / two:.2f} the examples/s"
    )
    for workers, found in times.items():
        spread = f"{min(found):.3f} to {max(found):.3f}"
        print(f"{workers} worker(s): {statistics.median(found):.3f} ms a step ({spread})")


if __name__ == "__main__":
    if sys.argv[1:] == ["worker"]:
        worker()
    else:
        main(int(sys.argv[1]) if len(sys.argv) > 1 else 3)
