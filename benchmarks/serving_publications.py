"""What callers notice of publications: nothing, it should be.

    python -m benchmarks.serving_publications [--rate=200] [--publications=20]

Replicas of the embedded server on one folder of versions, calls at a steady rate balanced between
them by the client. First nothing happens, then publications, a rollback (the newest version is
taken away), and a replica is killed and started again. No call may fail, and latencies should stay.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks import load, measuring, served
from tests.running import Process, free_port


class Replica:
    """A server of the folder, on a port and a core that it keeps when it is started again.

    Replicas of a real service don't start on each other's processors either.
    """

    def __init__(self, base_path: Path, index: int) -> None:
        self.port = free_port()
        self._base_path = base_path
        self._core = str(index % (os.cpu_count() or 1))
        self._process: Process | None = None

    def start(self) -> None:
        self._process = Process(
            ["taskset", "-c", self._core, *served.server(self._base_path, self.port)], limit_s=3600
        )

    def is_ready(self) -> bool:
        assert self._process is not None
        if self._process.popen.poll() is not None:
            raise RuntimeError(f"a replica ended:\n{self._process.tail()}")
        return "ready on" in self._process.output

    def kill(self) -> None:
        if self._process is not None:
            self._process.signal(signal.SIGKILL)
            self._process.kill()


async def until(condition: Callable[[], bool], limit_s: float = 120) -> None:
    ends_s = time.monotonic() + limit_s
    while not condition():
        if time.monotonic() > ends_s:
            raise TimeoutError("what was waited for did not come about")
        await asyncio.sleep(0.05)


async def publications(settings: Any, folder: Path) -> dict[str, Any]:
    """Runs the scenario; returns a summary for each of its phases."""
    models = folder / "models"
    last = settings.publications + 1
    for number in range(1, last + 1):  # all is written before, so that a publication is a rename
        shutil.copytree(folder / "model", models / f".{number}")
    (models / ".1").rename(models / "1")
    replicas = [Replica(models, i) for i in range(settings.replicas)]
    seen: set[int] = set()
    phases: list[tuple[str, float]] = []  # name and beginning
    ended = False

    async def happen() -> None:
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
                (models / f".{number}").rename(models / str(number))
                await until(lambda number=number: number in seen)
                await asyncio.sleep(settings.pause_s)
            phase("rollback")
            seen.clear()
            (models / str(last)).rename(models / f".{last}")
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
        async with served.caller([replica.port for replica in replicas]) as ask:

            async def call() -> None:
                seen.add(await ask())

            story = asyncio.create_task(happen())
            outcomes = await load.offer(call, settings.rate, lambda _: ended)
            await story
    begins = [*phases, ("", float("inf"))]
    by_phase = {
        name: [outcome for outcome in outcomes if began_s <= outcome.due_s < begins[i + 1][1]]
        for i, (name, began_s) in enumerate(phases)
    }
    usual = by_phase["usual"] + by_phase["usual again"]
    changes = [each for name in list(by_phase)[2:-1] for each in by_phase[name]]
    groups = {"usual": usual} | {name: by_phase[name] for name in list(by_phase)[2:-1]}
    groups["all changes"] = changes
    found = {name: load.summarise(group, settings.rate) for name, group in groups.items()}
    start_s = outcomes[0].due_s
    return {
        "calls": len(outcomes),
        "failed": sum(outcome.error is not None for outcome in outcomes),
        "errors": sorted({outcome.error for outcome in outcomes if outcome.error})[:5],
        "p99_over_usual": round(found["all changes"].p99_ms / found["usual"].p99_ms, 2),
        "phases": {name: dataclasses.asdict(summary) for name, summary in found.items()},
        "begins_s": {name: round(began_s - start_s, 2) for name, began_s in phases},
        "p99_ms_by_second": by_second(outcomes),
    }


def by_second(outcomes: Sequence[load.Outcome]) -> list[float | None]:
    """The 0.99 quantile of the calls that were due in each second; None where none succeeded."""
    seconds: dict[int, list[float]] = {}
    for outcome in outcomes:
        latencies = seconds.setdefault(int(outcome.due_s - outcomes[0].due_s), [])
        if outcome.error is None:
            latencies.append(1000 * outcome.latency_s)
    return [
        round(measuring.quantile(seconds[second], 0.99), 3) if seconds.get(second) else None
        for second in range(max(seconds) + 1)
    ]


def tell(figures: dict[str, Any]) -> str:
    rows = [
        (
            *(name, phase["calls"], phase["failed"]),
            *(f"{phase[key]:.1f}" for key in ("p50_ms", "p90_ms", "p99_ms", "max_ms")),
            f"{phase['p99_ms'] / figures['phases']['usual']['p99_ms']:.2f}",
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
    )
    began = measuring.machine()
    with tempfile.TemporaryDirectory() as folder:
        served.write_model(Path(folder) / "model")
        figures = asyncio.run(publications(settings, Path(folder)))
    measuring.save(
        settings.results,
        "serving_publications",
        began=began,
        versions=measuring.versions(sys.executable, "tensorflow", "grpcio", "numpy"),
        settings=vars(settings),
        figures=figures,
        text=tell(figures),
    )


if __name__ == "__main__":
    main()
