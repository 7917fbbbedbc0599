"""From the SIGKILL of a worker to training again, and start-up, beside torchrun.

    make peers
    python -m benchmarks.recovery [--task=cnn] [--rounds=3]

Two workers of the same model under ``cluster.launch`` and under torchrun, in turns. In each round
worker 1 is killed, then worker 0. Training again means: every worker has done an update, from the
last checkpoint on. Nothing is pinned.

Before each kill the workers train until the launcher's spares (``cluster.spares``) have imported
TensorFlow and wait; torchrun's workers train as long before theirs. A fault before that costs what
a start-up does.

Now and then two new processes of PyTorch do not find each other in ``init_process_group``, after a
kill or at the very start: they wait without end, or gloo says that a connection was refused. A
measurement in which a system ends, or does not train within ``LIMIT_S``, is made anew, and counted.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

from benchmarks import measuring
from benchmarks.measuring import PEERS_PYTHON, Spread
from cluster import spares
from tests.running import ROOT, Process, wait_until

WORKERS = 2
CHECKPOINT_EVERY = 10  # steps
LIMIT_S = 60
MOST_STUCK = 5
EVENTS = ("start-up", "worker 1 killed", "worker 0 killed")


def tfdp(task: str, folder: Path) -> list[str]:
    return [
        *("python", "-m", "cluster.launch", f"--workers={WORKERS}", "--max_restarts=5", "--"),
        *(sys.executable, "-m", "tfdp.train", f"--workdir={folder}/run", "--steps=1000000"),
        f"--recipe={ROOT / 'benchmarks' / 'peers' / 'tfdp_recipe.py'}",
        *(f"--hparam=task={task}", f"--hparam=workers={WORKERS}", "--hparam=report_first=true"),
        *(f"--checkpoint_every_steps={CHECKPOINT_EVERY}", "--export_dir=none", "--notensorboard"),
    ]


def torchrun(task: str, folder: Path) -> list[str]:
    return [
        *(str(PEERS_PYTHON), "-m", "torch.distributed.run", "--standalone", "--max-restarts=5"),
        *(f"--nproc-per-node={WORKERS}", "-m", "benchmarks.peers.torch_endless"),
        *(task, str(CHECKPOINT_EVERY), str(folder / "checkpoint")),
    ]


SYSTEMS = {"tfdp": tfdp, "torchrun": torchrun}


def wait_for_spares(launcher: Process) -> None:
    """Returns when all spares read from their pipes: what they import is imported."""

    def are_ready() -> bool:
        reading = [
            child
            for child in psutil.Process(launcher.pid).children()
            if spares.VARIABLE in child.environ()
            and Path(f"/proc/{child.pid}/fd/0").readlink().name.startswith("pipe:")
            and "pipe_read" in Path(f"/proc/{child.pid}/wchan").read_text()
        ]
        return len(reading) == WORKERS

    wait_until(are_ready, LIMIT_S, "spares wait")


def measure(system: str, task: str, pauses_s: dict[int, float]) -> dict[str, float]:
    """Seconds for each of the events.

    Args:
        system: a key of ``SYSTEMS``.
        task: the model.
        pauses_s: how long workers train before a rank is killed; tfdp sets it, to the time that
            spares take, and the others go by it.

    Raises:
        AssertionError, RuntimeError: if it does not train in time, or ends.
    """
    took_s: dict[str, float] = {}
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True)))
        began_s = time.monotonic()
        launcher = stack.enter_context(Process(SYSTEMS[system](task, folder), limit_s=8 * LIMIT_S))

        def reports(beginning: int) -> dict[int, dict[str, Any]] | None:
            """By rank, those of the workers started since, once they are complete."""
            found = {
                report["rank"]: report
                for report in measuring.reports_in(launcher.output)[beginning:]
            }
            if launcher.popen.poll() is not None:
                raise RuntimeError(f"{system} ended:\n{launcher.tail()}")
            return found if len(found) == WORKERS else None

        def training(beginning: int) -> dict[int, Any]:
            found: dict[int, Any] = wait_until(
                lambda: reports(beginning), LIMIT_S, "every worker trains"
            )
            return found

        running = training(0)
        took_s["start-up"] = max(report["at_s"] for report in running.values()) - began_s
        for kills, rank in enumerate((1, 0), start=1):
            if system == "tfdp":
                trains_s = time.monotonic()
                wait_for_spares(launcher)
                pauses_s[rank] = time.monotonic() - trains_s
            else:
                time.sleep(pauses_s[rank])
            killed_s = time.monotonic()
            os.kill(running[rank]["pid"], signal.SIGKILL)
            running = training(kills * WORKERS)
            if not all(report["step"] > CHECKPOINT_EVERY for report in running.values()):
                raise RuntimeError(f"{system} began anew:\n{launcher.tail()}")
            ends_s = max(report["at_s"] for report in running.values())
            took_s[f"worker {rank} killed"] = ends_s - killed_s
    return took_s


def tell(figures: dict[str, dict[str, list[float]]], stuck: dict[str, int]) -> str:
    rows = [
        (
            event,
            measuring.ratios(figures["tfdp"][event], figures["torchrun"][event]).text(),
            *(Spread.of(figures[system][event]).text(1) for system in SYSTEMS),
        )
        for event in EVENTS
    ]
    header = ("until every worker has done an update", "over torchrun", "tfdp, s", "torchrun, s")
    anew = ", ".join(f"{system} {count}" for system, count in stuck.items())
    return f"{measuring.table(header, rows)}\n\nMeasurements made anew, as nothing trained: {anew}."


def main() -> None:
    settings = measuring.arguments(__doc__, task="cnn", rounds=3)
    began = measuring.machine()
    figures: dict[str, dict[str, list[float]]] = {
        system: {event: [] for event in EVENTS} for system in SYSTEMS
    }
    stuck = dict.fromkeys(SYSTEMS, 0)
    for number in range(settings.rounds):
        pauses_s: dict[int, float] = {}
        for system, found in figures.items():
            took_s = None
            while took_s is None:
                try:
                    took_s = measure(system, settings.task, pauses_s)
                except (AssertionError, RuntimeError) as error:
                    stuck[system] += 1
                    print(f"round {number + 1}, {system}: {error}", file=sys.stderr, flush=True)
                    if stuck[system] == MOST_STUCK:
                        raise
            for event in EVENTS:
                found[event].append(took_s[event])
            print(f"round {number + 1}, {system}: {took_s}", file=sys.stderr, flush=True)
    measuring.save(
        settings.results,
        "recovery",
        began=began,
        versions=measuring.versions(sys.executable, "tensorflow", "keras")
        | measuring.versions(PEERS_PYTHON, "torch"),
        settings=vars(settings),
        figures=figures | {"stuck": stuck},
        text=tell(figures, stuck),
    )


if __name__ == "__main__":
    main()
