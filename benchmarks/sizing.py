"""The predicted 0.99 quantile of one replica's latency beside the measured one (docs/sizing.md).

    python -m benchmarks.sizing [--rounds=12] [--seconds=4]

The embedded server has a core of its own, and so has the generator. A round measures the knee, by
more calls than one replica can answer; the latencies at a tenth, at half and at 0.7 of it; and the
knee again. The last two latencies are predicted from the first one, over all rounds, and the knee.
Rounds in which the knee changes by more than a tenth are left out, and so are latencies that are
the generator's own, because it was late: other work took the cores.
"""

from __future__ import annotations

import asyncio
import dataclasses
import os
import statistics
import sys
import tempfile
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "false")  # it would log at every fork

import numpy as np

from benchmarks import measuring
from serving.client import AsyncClient
from serving.client.command import bench, load, sizing
from tests.running import Process, run

LOW_USE = 0.1  # of the knee: hardly any call waits
USES = (0.5, 0.7)
OVERLOAD = 1.3  # of the knee
VARIABILITIES = {"M/M/1": 1.0, "M/D/1": 0.5}
MAX_CHANGE = 0.1  # of the knee within a round
WIDTH, LAYERS = 512, 12
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


Offer = Callable[[float, float], Awaitable[list[load.Outcome]]]  # at a rate, for some seconds


@dataclasses.dataclass(frozen=True)
class Round:
    """Measurements of one round: the knee before and after, and calls by their share of it."""

    knees_per_s: tuple[float, float]
    rates_per_s: dict[float, float]
    outcomes: dict[float, list[load.Outcome]]

    def summary(self, use: float) -> load.Summary:
        return load.summarise(self.outcomes[use], self.rates_per_s[use])

    def is_late(self, use: float) -> bool:
        return bench.is_late(self.summary(use))


async def measure(settings: Any, target: str) -> dict[str, Any]:
    """Returns measured and predicted latencies of one replica."""
    inputs = {"x": np.ones((settings.rows, WIDTH), np.float32)}
    async with AsyncClient(target, check=False, retries=0, timeout_s=60) as client:

        async def call() -> None:
            await client.predict("m", inputs)

        async def offer(rate_per_s: float, seconds: float) -> list[load.Outcome]:
            outcomes = await load.offer(
                call, rate_per_s, lambda after_s: after_s >= seconds, is_random=True
            )
            if errors := [outcome.error for outcome in outcomes if outcome.error]:
                raise RuntimeError(f"{len(errors)} calls failed: {errors[0]}")
            return outcomes

        knee_per_s = await find_knee(offer, settings.seconds)
        rounds = []
        for _ in range(settings.rounds):
            before_per_s = await overload(offer, knee_per_s, settings.seconds / 3)
            rates = {use: round(use * before_per_s, 1) for use in (LOW_USE, *USES)}
            outcomes = {use: await offer(rate, settings.seconds) for use, rate in rates.items()}
            knee_per_s = await overload(offer, before_per_s, settings.seconds / 3)
            rounds.append(Round((before_per_s, knee_per_s), rates, outcomes))
        return figures_of(rounds)


def figures_of(rounds: Sequence[Round]) -> dict[str, Any]:
    """Returns measured and predicted latencies of the rounds in which the knee was steady."""
    steady = [
        each for each in rounds if max(each.knees_per_s) < (1 + MAX_CHANGE) * min(each.knees_per_s)
    ]
    if not steady:
        raise RuntimeError(f"the knee changed in all of {len(rounds)} rounds: other work runs here")
    low = [
        outcome.latency_s
        for each in steady
        if not each.is_late(LOW_USE)
        for outcome in each.outcomes[LOW_USE]
    ]
    if not low:
        raise RuntimeError("the generator was late in all rounds: other work runs here")
    unloaded_p99_ms = 1000 * load.quantile(low, 0.99)
    return {
        "unloaded_p50_ms": round(1000 * load.quantile(low, 0.5), 3),
        "unloaded_p99_ms": round(unloaded_p99_ms, 3),
        "knees_per_s": [each.knees_per_s for each in rounds],
        "rounds": len(rounds),
        "steady_rounds": len(steady),
        "points": {
            use: [
                point(
                    sizing.Measured(unloaded_p99_ms, statistics.mean(each.knees_per_s)),
                    each.summary(use),
                )
                for each in steady
                if not each.is_late(use)
            ]
            for use in USES
        },
    }


async def find_knee(offer: Offer, seconds: float) -> float:
    """Returns the answers in a second at the first rate that is too high."""
    rate_per_s = 20.0
    while True:
        found = load.summarise(await offer(rate_per_s, seconds / 3), rate_per_s)
        if found.answered_per_s < 0.9 * rate_per_s:
            return found.answered_per_s
        rate_per_s *= 1.5


async def overload(offer: Offer, knee_per_s: float, seconds: float) -> float:
    """Returns the answers in a second at a rate above the knee."""
    rate_per_s = OVERLOAD * knee_per_s
    return load.summarise(await offer(rate_per_s, seconds), rate_per_s).answered_per_s


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


def tell(figures: dict[str, Any]) -> str:
    rows: list[tuple[Any, ...]] = []
    for use, points in figures["points"].items():
        if not points:
            rows.append((use, 0))
            continue
        ratios = [
            measuring.Spread.of([each["predicted_over_measured"][name] for each in points]).text()
            for name in VARIABILITIES
        ]
        measured = measuring.Spread.of([each["p99_ms"] for each in points]).text(1)
        late = measuring.Spread.of([each["late_p99_ms"] for each in points]).text(1)
        rows.append((use, len(points), *ratios, measured, late))
    knees = [knee for pair in figures["knees_per_s"] for knee in pair]
    header = (
        *("share of the knee", "rounds"),
        *(f"predicted over measured p99, {name}" for name in VARIABILITIES),
        *("measured p99, ms", "generator late, p99, ms"),
    )
    return (
        f"One replica, in the {figures['steady_rounds']} of {figures['rounds']} rounds with a "
        f"steady knee: at a tenth of the knee, p50 {figures['unloaded_p50_ms']:.1f} ms and p99 "
        f"{figures['unloaded_p99_ms']:.1f} ms. The knee, in all rounds: "
        f"{measuring.Spread.of(knees).text(0)} answers/s.\n\n{measuring.table(header, rows)}"
    )


def main() -> None:
    settings = measuring.arguments(__doc__, rounds=12, seconds=4.0, rows=4)
    began = measuring.machine()
    cores = os.cpu_count() or 1
    with tempfile.TemporaryDirectory() as folder:
        run(["python", "-c", _SAVE, str(Path(folder) / "1")])
        os.sched_setaffinity(0, {0})
        served = ["--port=0", "--model_name=m", f"--model_base_path={folder}"]
        server = ["taskset", "-c", str(cores - 1), "python", "-m", "serving.server", *served]
        with Process(server, limit_s=3600) as process:
            target = process.wait_for(r"ready on (127\.0\.0\.1:\d+)")[1]
            figures = asyncio.run(measure(settings, target))
    measuring.save(
        settings.results,
        "sizing",
        began=began,
        versions=measuring.versions(sys.executable, "tensorflow", "grpcio", "numpy"),
        settings=vars(settings),
        figures=figures,
        text=tell(figures),
    )


if __name__ == "__main__":
    main()
