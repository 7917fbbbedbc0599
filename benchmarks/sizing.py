"""The predicted 0.99 quantile of one replica's latency beside the measured one (docs/sizing.md).

    python -m benchmarks.sizing [--rounds=3] [--seconds=10]

The embedded server has a core of its own, and so has the generator. A round measures the latency at
a tenth of the knee, then at half of it and at 0.7 of it, and the knee itself by more calls than one
replica can answer. From the first and the last, the two in the middle are predicted.
"""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "false")  # it would log at every fork

import numpy as np

from benchmarks import measuring
from serving.client import AsyncClient, load, sizing
from tests.running import Process, run

LOW_USE = 0.1  # of the knee: hardly any call waits
USES = (0.5, 0.7)
OVERLOAD = 1.3  # of the knee
VARIABILITIES = {"M/M/1": 1.0, "M/D/1": 0.5}
WIDTH, LAYERS = 512, 24
_SAVE = f"""
import sys
import tensorflow as tf

class Model(tf.Module):
    def __init__(self):
        self.layers = [tf.Variable(tf.random.normal([{WIDTH}, {WIDTH}])) for _ in range({LAYERS})]

    @tf.function(input_signature=[tf.TensorSpec([None, {WIDTH}], name="x")])
    def answer(self, x):
        for layer in self.layers:
            x = tf.math.tanh(x @ layer)
        return {{"y": x}}

model = Model()
tf.saved_model.save(model, sys.argv[1], signatures={{"serving_default": model.answer}})
"""


async def measure(settings: Any, target: str) -> list[dict[str, Any]]:
    """Returns measured and predicted latencies of each round."""
    inputs = {"x": np.ones((settings.rows, WIDTH), np.float32)}
    async with AsyncClient(target, check=False, retries=0, timeout_s=60) as client:

        async def call() -> None:
            await client.predict("m", inputs)

        async def summary(rate_per_s: float, seconds: float) -> load.Summary:
            outcomes = await load.offer(
                call, rate_per_s, lambda after_s: after_s >= seconds, is_random=True
            )
            found = load.summarise(outcomes, rate_per_s)
            if found.failed:
                raise RuntimeError(f"calls failed: {found.statuses}")
            return found

        knee_per_s = await find_knee(summary, settings.seconds)
        rounds = []
        for _ in range(settings.rounds):
            rates = {use: round(use * knee_per_s, 1) for use in (LOW_USE, *USES)}
            points = {use: await summary(rate, settings.seconds) for use, rate in rates.items()}
            overloaded = await summary(OVERLOAD * knee_per_s, settings.seconds / 3)
            knee_per_s = overloaded.answered_per_s
            unloaded_p99_ms = points[LOW_USE].p99_ms
            assert unloaded_p99_ms is not None
            one = sizing.Measured(unloaded_p99_ms, knee_per_s)
            rounds.append(
                {
                    "unloaded_p50_ms": points[LOW_USE].p50_ms,
                    "unloaded_p99_ms": unloaded_p99_ms,
                    "knee_per_s": knee_per_s,
                    "points": [point(one, points[use]) for use in USES],
                }
            )
        return rounds


async def find_knee(summary: Any, seconds: float) -> float:
    """Returns the answers in a second at the first rate that is too high."""
    rate_per_s = 20.0
    while True:
        found = await summary(rate_per_s, seconds / 5)
        if found.answered_per_s < 0.9 * rate_per_s:
            return float(found.answered_per_s)
        rate_per_s *= 1.5


def point(one: sizing.Measured, measured: load.Summary) -> dict[str, Any]:
    """Returns a measured quantile beside its predictions."""
    assert measured.p99_ms is not None
    predicted = {
        name: round(sizing.predicted_p99_ms(one, measured.offered_per_s, variability), 3)
        for name, variability in VARIABILITIES.items()
    }
    return {
        "offered_per_s": measured.offered_per_s,
        "use": round(measured.offered_per_s / one.knee_per_s, 3),
        "p50_ms": measured.p50_ms,
        "p99_ms": measured.p99_ms,
        "late_p99_ms": measured.late_p99_ms,
        "predicted_p99_ms": predicted,
        "predicted_over_measured": {
            name: round(value / measured.p99_ms, 2) for name, value in predicted.items()
        },
    }


def tell(rounds: list[dict[str, Any]]) -> str:
    rows = []
    for index, use in enumerate(USES):
        points = [each["points"][index] for each in rounds]
        ratios = [
            measuring.Spread.of([p["predicted_over_measured"][name] for p in points]).text()
            for name in VARIABILITIES
        ]
        measured = measuring.Spread.of([p["p99_ms"] for p in points]).text(1)
        late = measuring.Spread.of([p["late_p99_ms"] for p in points]).text(1)
        rows.append((use, *ratios, measured, late))
    figures = [
        f"{name} {measuring.Spread.of([each[key] for each in rounds]).text(1)} {unit}"
        for name, key, unit in (
            ("p99 at a tenth of the knee", "unloaded_p99_ms", "ms"),
            ("p50 there", "unloaded_p50_ms", "ms"),
            ("the knee", "knee_per_s", "answers/s"),
        )
    ]
    header = (
        "share of the knee",
        *(f"predicted over measured p99, {name}" for name in VARIABILITIES),
        *("measured p99, ms", "generator late, p99, ms"),
    )
    return f"One replica: {'; '.join(figures)}.\n\n{measuring.table(header, rows)}"


def main() -> None:
    settings = measuring.arguments(__doc__, rounds=3, seconds=10.0, rows=4)
    began = measuring.machine()
    cores = os.cpu_count() or 1
    with tempfile.TemporaryDirectory() as folder:
        run(["python", "-c", _SAVE, str(Path(folder) / "1")])
        os.sched_setaffinity(0, {0})
        served = ["--port=0", "--model_name=m", f"--model_base_path={folder}"]
        server = ["taskset", "-c", str(cores - 1), "python", "-m", "serving.server", *served]
        with Process(server, limit_s=3600) as process:
            target = process.wait_for(r"ready on (127\.0\.0\.1:\d+)")[1]
            rounds = asyncio.run(measure(settings, target))
    measuring.save(
        settings.results,
        "sizing",
        began=began,
        versions=measuring.versions(sys.executable, "tensorflow", "grpcio", "numpy"),
        settings=vars(settings),
        figures={"rounds": rounds},
        text=tell(rounds),
    )


if __name__ == "__main__":
    main()
