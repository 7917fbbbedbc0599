"""Time of start-up, and from the SIGKILL of a worker to training again, against torchrun.

    make peers
    python -m benchmarks.recovery [--task=cnn] [--rounds=3]

Two workers train the same model, under ``cluster.launch`` and under torchrun in turns. In each
round worker 1 is killed, then worker 0. Recovery ends when every worker has done an update that
follows the last checkpoint. Processes are not pinned.

Before each kill the workers train until the launcher's spare processes
(``cluster.launching.spares``) have imported TensorFlow and wait; torchrun's workers train equally
long. A fault before that takes as long as a start-up.

Sometimes two new processes of PyTorch do not find each other in ``init_process_group``, after a
kill or at the first start: they wait without end, or gloo reports that a connection was refused. If
a system ends, or does not train within ``LIMIT_S``, the script counts that and measures again.
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
from cluster.launching import spares
from tests.running import ROOT, Process, wait_until

WORKERS = 2
CHECKPOINT_EVERY = 10  # steps
LIMIT_S = 60
MAX_STUCK = 5  # failed measurements of a system
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
    """Waits until all spare processes read from their pipes: their imports are done then."""

    def is_ready(process: psutil.Process) -> bool:
        return (
            spares.VARIABLE in process.environ()
            and Path(f"/proc/{process.pid}/fd/0").readlink().name.startswith("pipe:")
            and "pipe_read" in Path(f"/proc/{process.pid}/wchan").read_text()
        )

    def are_ready() -> bool:
        return sum(map(is_ready, psutil.Process(launcher.pid).children())) == WORKERS

    wait_until(are_ready, LIMIT_S, "spare processes wait")


def measure(system: str, task: str, pauses_s: dict[int, float]) -> dict[str, float]:
    """Returns seconds for each of ``EVENTS``.

    Args:
        system: a key of ``SYSTEMS``.
        task: a key of ``TASKS``.
        pauses_s: by rank, how long workers train before it is killed. A measurement of tfdp sets
            it to the time that spare processes need; those of other systems use it.

    Raises:
        AssertionError: if the system does not train in time.
        RuntimeError: if the system ends, or starts from the beginning after a kill.
    """
    durations_s: dict[str, float] = {}
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True)))
        began_s = time.monotonic()
        launcher = stack.enter_context(Process(SYSTEMS[system](task, folder), limit_s=8 * LIMIT_S))

        def first_steps(skipped: int) -> dict[int, dict[str, Any]] | None:
            """Returns reports by rank, without the ``skipped`` first; None until all are there."""
            reports = {
                report["rank"]: report for report in measuring.reports_in(launcher.output)[skipped:]
            }
            if launcher.popen.poll() is not None:
                raise RuntimeError(f"{system} ended:\n{launcher.tail()}")
            return reports if len(reports) == WORKERS else None

        def wait_for_training(skipped: int) -> dict[int, dict[str, Any]]:
            reports: dict[int, dict[str, Any]] = wait_until(
                lambda: first_steps(skipped), LIMIT_S, "every worker trains"
            )
            return reports

        workers = wait_for_training(skipped=0)
        durations_s["start-up"] = max(report["at_s"] for report in workers.values()) - began_s
        for kills, rank in enumerate((1, 0), start=1):
            if system == "tfdp":
                pause_began_s = time.monotonic()
                wait_for_spares(launcher)
                pauses_s[rank] = time.monotonic() - pause_began_s
            else:
                time.sleep(pauses_s[rank])
            killed_s = time.monotonic()
            os.kill(workers[rank]["pid"], signal.SIGKILL)
            workers = wait_for_training(skipped=kills * WORKERS)
            if not all(report["step"] > CHECKPOINT_EVERY for report in workers.values()):
                raise RuntimeError(f"{system} started from the beginning:\n{launcher.tail()}")
            recovered_s = max(report["at_s"] for report in workers.values())
            durations_s[f"worker {rank} killed"] = recovered_s - killed_s
    return durations_s


def to_markdown(figures: dict[str, dict[str, list[float]]], stuck: dict[str, int]) -> str:
    rows = [
        (
            event,
            measuring.ratios(figures["tfdp"][event], figures["torchrun"][event]).text(),
            *(Spread.of(figures[system][event]).text(1) for system in SYSTEMS),
        )
        for event in EVENTS
    ]
    header = ("until every worker has done an update", "over torchrun", "tfdp, s", "torchrun, s")
    counts = ", ".join(f"{system} {count}" for system, count in stuck.items())
    return (
        f"{measuring.table(header, rows)}\n\nMeasurements repeated, as nothing trained: {counts}."
    )


def main() -> None:
    settings = measuring.arguments(__doc__, task="cnn", rounds=3)
    began = measuring.machine()
    figures: dict[str, dict[str, list[float]]] = {
        system: {event: [] for event in EVENTS} for system in SYSTEMS
    }
    stuck = dict.fromkeys(SYSTEMS, 0)
    for number in range(settings.rounds):
        pauses_s: dict[int, float] = {}
        for system, of_system in figures.items():
            durations_s = None
            while durations_s is None:
                try:
                    durations_s = measure(system, settings.task, pauses_s)
                except (AssertionError, RuntimeError) as error:
                    stuck[system] += 1
                    print(f"round {number + 1}, {system}: {error}", file=sys.stderr, flush=True)
                    if stuck[system] == MAX_STUCK:
                        raise
            for event in EVENTS:
                of_system[event].append(durations_s[event])
            print(f"round {number + 1}, {system}: {durations_s}", file=sys.stderr, flush=True)
    measuring.save_results(
        "recovery",
        vars(settings),
        began,
        figures | {"stuck": stuck},
        to_markdown(figures, stuck),
        peer_packages=("torch",),
    )


if __name__ == "__main__":
    main()
