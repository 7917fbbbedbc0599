"""Latency against offered load: the embedded server beside a bare gRPC echo.

    python -m benchmarks.serving_load [--rates=250,500,1000] [--seconds=8]

Each server has a core of its own, and so has the generator. "Late" is how much after its time the
generator began a call: where that is not far below the latencies, they are the generator's own.
"""

from __future__ import annotations

import asyncio
import dataclasses
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks import load, measuring, served
from tests.running import Process

_ECHO = """
from concurrent.futures import ThreadPoolExecutor
import grpc

server = grpc.server(ThreadPoolExecutor(16))
echo = grpc.unary_unary_rpc_method_handler(lambda data, context: data)
service = "tensorflow.serving.PredictionService"
handler = grpc.method_handlers_generic_handler(service, {"Predict": echo})
server.add_generic_rpc_handlers((handler,))
port = server.add_insecure_port("127.0.0.1:0")
server.start()
print("ready on 127.0.0.1:%d" % port, flush=True)
server.wait_for_termination()
"""


async def curve(settings: Any, folder: Path) -> dict[str, Any]:
    """Latency against offered load, until a server can't keep up."""
    (folder / "models").mkdir()
    (folder / "model").rename(folder / "models" / "1")
    os.sched_setaffinity(0, {0})
    commands = {
        "gRPC echo": ["python", "-c", _ECHO],
        "serving.server": served.server(folder / "models"),
    }
    found: dict[str, list[dict[str, Any]]] = {}
    for name, command in commands.items():
        points = found[name] = []
        core = str((os.cpu_count() or 1) - 1)
        with Process(["taskset", "-c", core, *command], limit_s=3600) as process:
            port = int(process.wait_for(r"ready on 127\.0\.0\.1:(\d+)")[1])
            async with served.caller([port]) as ask:
                await load.offer(ask, 100, lambda s: s >= 2)
                for rate in settings.rates:
                    outcomes = await load.offer(ask, rate, lambda s: s >= settings.seconds)
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
    with tempfile.TemporaryDirectory() as folder:
        served.write_model(Path(folder) / "model")
        figures = asyncio.run(curve(settings, Path(folder)))
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
