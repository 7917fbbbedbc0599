"""From the SIGKILL of a worker to training again, and start-up, beside torchrun.

    make peers
    python -m benchmarks.recovery [--task=cnn] [--rounds=3]

Two workers of the same model under ``cluster.launch`` and under torchrun, in turns. In each round
worker 1 is killed, then worker 0. Training again means: every worker has done an update, from the
last checkpoint on. Nothing is pinned.
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

from benchmarks import measuring
from benchmarks.measuring import PEERS_PYTHON, Spread
from tests.running import ROOT, Process, wait_until

WORKERS = 2
CHECKPOINT_EVERY = 10  # steps
LIMIT_S = 120
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


def measure(system: str, task: str) -> dict[str, float]:
    """Seconds for each of the events."""
    took_s: dict[str, float] = {}
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True)))
        began_s = time.monotonic()
        launcher = stack.enter_context(Process(SYSTEMS[system](task, folder), limit_s=4 * LIMIT_S))

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
            time.sleep(3)  # of training, so that there is a checkpoint
            killed_s = time.monotonic()
            os.kill(running[rank]["pid"], signal.SIGKILL)
            running = training(kills * WORKERS)
            if not all(report["step"] > CHECKPOINT_EVERY for report in running.values()):
                raise RuntimeError(f"{system} began anew:\n{launcher.tail()}")
            ends_s = max(report["at_s"] for report in running.values())
            took_s[f"worker {rank} killed"] = ends_s - killed_s
    return took_s


def tell(figures: dict[str, dict[str, list[float]]]) -> str:
    rows = [
        (
            event,
            measuring.ratios(figures["tfdp"][event], figures["torchrun"][event]).text(),
            *(Spread.of(figures[system][event]).text(1) for system in SYSTEMS),
        )
        for event in EVENTS
    ]
    header = ("until every worker has done an update", "over torchrun", "tfdp, s", "torchrun, s")
    return measuring.table(header, rows)


def main() -> None:
    settings = measuring.arguments(__doc__, task="cnn", rounds=3)
    began = measuring.machine()
    figures: dict[str, dict[str, list[float]]] = {
        system: {event: [] for event in EVENTS} for system in SYSTEMS
    }
    for number in range(settings.rounds):
        for system, found in figures.items():
            took_s = measure(system, settings.task)
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
        figures=figures,
        text=tell(figures),
    )


if __name__ == "__main__":
    main()
