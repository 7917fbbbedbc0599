"""Latency and failures of calls while versions are published: no call may fail.

    python -m benchmarks.serving_publications [--rate=200] [--publications=20] [--rollout]

Replicas of the embedded server share a folder of versions. Each has a core of its own.
``AsyncClient`` makes calls at a steady rate. After a time without changes, versions are published,
the last one is rolled back, and a replica is killed (SIGKILL) and started again.

Replicas serve the newest version in the folder, and the rollback renames it. With ``--rollout``,
they read a models.config, callers use the label "stable", and ``serving.rollout`` promotes every
version and rolls the last one back.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "false")  # it would log at every fork

import numpy as np

from benchmarks import measuring
from benchmarks.replicas import WIDTH, Models, Replica, until
from serving.client import AsyncClient
from serving.client.command import load


async def publications(settings: Any, folder: Path) -> dict[str, Any]:
    """Runs the scenario; returns a summary for each of its phases."""
    last = settings.publications + 1
    models = Models(folder, last, settings.rollout)
    replicas = [Replica(models, index) for index in range(settings.replicas)]
    ports = [replica.port for replica in replicas]
    seen: set[int] = set()
    phases: list[tuple[str, float]] = []  # name and beginning
    ended = False

    async def make_changes() -> None:
        nonlocal ended

        def phase(name: str) -> None:
            phases.append((name, time.perf_counter()))

        try:
            phase("warm-up")
            await asyncio.sleep(settings.pause_s)
            phase("usual")
            await asyncio.sleep(settings.usual_s)
            phase("publications")
            for number in range(2, last + 1):
                await models.publish(number, ports)
                await until(lambda number=number: number in seen)
                await asyncio.sleep(settings.pause_s)
            phase("rollback")
            seen.clear()
            await models.take_back(last, ports)
            await until(lambda: last - 1 in seen)
            await asyncio.sleep(settings.pause_s)
            phase("replica killed")
            replicas[0].kill()
            await asyncio.sleep(settings.pause_s)
            phase("replica started")
            replicas[0].start()
            await until(replicas[0].is_ready)
            await asyncio.sleep(settings.pause_s)
            phase("usual again")
            await asyncio.sleep(settings.usual_s)
        finally:
            ended = True

    with contextlib.ExitStack() as stack:
        for replica in replicas:
            stack.callback(replica.kill)
            replica.start()
        for replica in replicas:
            await until(replica.is_ready)
        async with AsyncClient([f"127.0.0.1:{port}" for port in ports]) as client:
            inputs = {"x": np.ones((1, WIDTH), np.float32)}
            label = "stable" if settings.rollout else None

            async def call() -> None:
                outputs = await client.predict("m", inputs, label=label)
                seen.add(int(outputs["number"][0]))

            changes = asyncio.create_task(make_changes())
            outcomes = await load.offer(call, settings.rate, lambda _: ended)
            await changes
    return summarised(outcomes, phases, settings.rate)


def summarised(
    outcomes: Sequence[load.Outcome], phases: Sequence[tuple[str, float]], rate: float
) -> dict[str, Any]:
    """Returns a summary of the calls in each phase, and in all phases with changes."""
    ends_s = [began_s for _, began_s in phases[1:]] + [float("inf")]
    groups = {
        name: [outcome for outcome in outcomes if began_s <= outcome.due_s < end_s]
        for (name, began_s), end_s in zip(phases, ends_s, strict=True)
    }
    del groups["warm-up"]
    groups["usual"] += groups.pop("usual again")
    groups["all changes"] = [
        outcome for name, group in groups.items() if name != "usual" for outcome in group
    ]
    found = {name: load.summarise(group, rate) for name, group in groups.items()}
    start_s = outcomes[0].due_s
    return {
        "calls": len(outcomes),
        "failed": sum(outcome.error is not None for outcome in outcomes),
        "errors": sorted({outcome.error for outcome in outcomes if outcome.error})[:5],
        "p99_over_usual": ratio(found["all changes"].p99_ms, found["usual"].p99_ms),
        "phases": {name: dataclasses.asdict(summary) for name, summary in found.items()},
        "begins_s": {name: round(began_s - start_s, 2) for name, began_s in phases},
        "p99_ms_by_second": by_second(outcomes),
    }


def ratio(value: float | None, usual: float | None) -> float | None:
    """Returns the ratio of two quantiles; None if all calls of one failed."""
    return round(value / usual, 2) if value is not None and usual else None


def by_second(outcomes: Sequence[load.Outcome]) -> list[float | None]:
    """Returns the 0.99 quantile of the calls due in each second; None if all of them failed."""
    seconds: dict[int, list[float]] = {}
    for outcome in outcomes:
        latencies = seconds.setdefault(int(outcome.due_s - outcomes[0].due_s), [])
        if outcome.error is None:
            latencies.append(1000 * outcome.latency_s)
    return [
        round(load.quantile(seconds[second], 0.99), 3) if seconds.get(second) else None
        for second in range(max(seconds) + 1)
    ]


def tell(figures: dict[str, Any]) -> str:
    rows = [
        (
            *(name, phase["calls"], phase["failed"]),
            *(
                "" if phase[key] is None else f"{phase[key]:.1f}"
                for key in ("p50_ms", "p90_ms", "p99_ms", "max_ms")
            ),
            ratio(phase["p99_ms"], figures["phases"]["usual"]["p99_ms"]),
        )
        for name, phase in figures["phases"].items()
    ]
    header = ("phase", "calls", "failed", "p50 ms", "p90", "p99", "max", "p99 over usual")
    errors = "".join(f"\n- {error}" for error in figures["errors"])
    return (
        f"{figures['failed']} of {figures['calls']} calls failed; p99 through all changes is "
        f"{figures['p99_over_usual']} times the usual one.{errors}\n\n"
        + measuring.table(header, rows)
    )


def main() -> None:
    settings = measuring.arguments(
        __doc__,
        replicas=2,
        rate=200,
        publications=20,
        pause_s=1.5,
        usual_s=20.0,
        rollout=False,
    )
    began = measuring.machine()
    with tempfile.TemporaryDirectory() as folder:
        figures = asyncio.run(publications(settings, Path(folder)))
    measuring.save(
        settings.results,
        "serving_rollout" if settings.rollout else "serving_publications",
        began=began,
        versions=measuring.versions(sys.executable, "tensorflow", "grpcio", "numpy"),
        settings=vars(settings),
        figures=figures,
        text=tell(figures),
    )


if __name__ == "__main__":
    main()
