"""Latency against offered load: the embedded server beside a bare gRPC echo.

    python -m benchmarks.serving_load [--rates=250,500,1000] [--seconds=8]

Each server has a core of its own, and so has the generator. "Late" is the delay with which the
generator began a call. If it is not much smaller than the latencies, they are the generator's.
"""

from __future__ import annotations

import asyncio
import dataclasses
import os
import sys
from typing import Any

os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "false")  # it would log at every fork

import grpc

from benchmarks import measuring, serving_speed
from serving.client.command import load
from tests.running import Process

TIMEOUT_S = 10.0


async def curve(settings: Any) -> dict[str, Any]:
    """Latency against offered load, until a server can't keep up."""
    cores = os.cpu_count() or 1
    os.sched_setaffinity(0, {0})
    served = ["--port=0", "--model_name=half_plus", f"--model_base_path={serving_speed.MODEL}"]
    commands = {
        "gRPC echo": ["python", serving_speed.__file__, "echo"],
        "serving.server": ["python", "-m", "serving.server", *served],
    }
    request = serving_speed.predict_request()
    found: dict[str, list[dict[str, Any]]] = {}
    for name, command in commands.items():
        points = found[name] = []
        with Process(["taskset", "-c", str(cores - 1), *command], limit_s=3600) as process:
            address = process.wait_for(r"ready on (127\.0\.0\.1:\d+)")[1]
            async with grpc.aio.insecure_channel(address) as channel:
                method = channel.unary_unary(serving_speed.METHOD)

                async def call(method: Any = method) -> None:
                    await method(request, timeout=TIMEOUT_S)

                await load.offer(call, 100, lambda seconds: seconds >= 2)
                for rate in settings.rates:
                    outcomes = await load.offer(
                        call, rate, lambda seconds: seconds >= settings.seconds
                    )
                    points.append(dataclasses.asdict(load.summarise(outcomes, rate)))
                    if points[-1]["answered_per_s"] < 0.9 * rate:
                        break
    return found


def tell(figures: dict[str, Any]) -> str:
    keys = ("offered_per_s", "answered_per_s", "failed", "p50_ms", "p90_ms", "p99_ms")
    header = ("server", "offered/s", "answered/s", "failed", "p50 ms", "p90", "p99", "late, p99")
    rows = [
        (name, *(point[key] for key in keys), point["late_p99_ms"])
        for name, points in figures.items()
        for point in points
    ]
    most = {
        name: max(point["answered_per_s"] for point in points) for name, points in figures.items()
    }
    return (
        f"Most calls answered in a second: serving.server {most['serving.server']:,.0f}, "
        f"{most['serving.server'] / most['gRPC echo']:.2f} of the echo's "
        f"{most['gRPC echo']:,.0f}.\n\n" + measuring.table(header, rows)
    )


def main() -> None:
    settings = measuring.arguments(
        __doc__, rates=(250, 500, 1000, 1500, 2000, 2500, 3000, 3500, 4000, 5000), seconds=8.0
    )
    began = measuring.machine()
    figures = asyncio.run(curve(settings))
    measuring.save(
        settings.results,
        "serving_load",
        began=began,
        versions=measuring.versions(sys.executable, "tensorflow", "grpcio", "numpy"),
        settings=vars(settings),
        figures=figures,
        text=tell(figures),
    )


if __name__ == "__main__":
    main()
