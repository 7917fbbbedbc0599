"""Searches on the digits: slots, rungs, the coordinator's own work, and kills.

    python -m benchmarks.search [--trials=24] [--epochs=4] [--rounds=1]

In each round the same search runs one trial after the other, two at a time, and two at a time with
``--prune=asha``; the figures are trials per hour, and the steps that ASHA needs for its best trial
over those that a search without rungs needs for one as good. The coordinator's processor time is
without that of its trials; its start is what it uses before the first of them runs. At the end,
``tests.processes.search_chaos`` kills a search of 30 trials ten times.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

from benchmarks import measuring
from benchmarks.measuring import Spread
from tests.processes import search_chaos
from tests.running import Process

LIMIT_S = 3600
SEARCHES = {
    "one after the other": ("--parallel=1",),
    "two at a time": ("--parallel=2",),
    "asha": ("--parallel=2", "--prune=asha"),
}


def measure(flags: tuple[str, ...], trials: int, epochs: int) -> dict[str, Any]:
    """Returns the figures of one search."""
    with tempfile.TemporaryDirectory() as folder:
        words = ["python", "-m", "tfdp.tune", "--recipe=tfdp.recipes.digits", *flags]
        words += [f"--workdir={folder}/run", "--objective=loss:min", "--export_dir=none"]
        words += [f"--trials={trials}", *(f"--search={each}" for each in search_chaos.SPACE)]
        began_s = time.monotonic()
        first_s = start_cpu_s = cpu_s = 0.0
        with Process([*words, "--", f"--epochs={epochs}"], limit_s=LIMIT_S) as search:
            coordinator = psutil.Process(search.pid)
            while search.popen.poll() is None:
                try:
                    times = coordinator.cpu_times()
                except psutil.NoSuchProcess:
                    break
                cpu_s = times.user + times.system
                if not first_s and search_chaos.trials_of(search.pid):
                    first_s, start_cpu_s = time.monotonic(), cpu_s
                time.sleep(0.1)
            search.wait()
        seconds = time.monotonic() - first_s
        rows = json.loads(Path(folder, "run", "search.json").read_text())["trials"]
    return {
        "trials_per_hour": trials / seconds * 3600,
        "start_s": first_s - began_s,
        "start_cpu_s": start_cpu_s,
        "cpu_ms_per_trial": 1000 * (cpu_s - start_cpu_s) / trials,
        "steps": sum(row["steps"] for row in rows),
        "losses": [row["objective"] if row["state"] == "complete" else None for row in rows],
        "steps_by_trial": [row["steps"] for row in rows],
    }


def steps_to(loss: float, figures: dict[str, Any]) -> int | None:
    """Returns the steps of trials until one is at least as good; None if none is."""
    steps = 0
    of_trials = zip(figures["losses"], figures["steps_by_trial"], strict=True)
    for found, of_trial in of_trials:
        steps += of_trial
        if found is not None and found <= loss:
            return steps
    return None


def to_markdown(rounds: list[dict[str, dict[str, Any]]], kills: str) -> str:
    """Returns the tables."""
    names = list(SEARCHES)
    rows = []
    for name in names:
        of_rounds = [each[name] for each in rounds]
        best = [min(loss for loss in each["losses"] if loss is not None) for each in of_rounds]
        rows.append(
            (
                name,
                Spread.of([each["trials_per_hour"] for each in of_rounds]).text(0),
                measuring.ratios(
                    [each["trials_per_hour"] for each in of_rounds],
                    [each[names[0]]["trials_per_hour"] for each in rounds],
                ).text(),
                Spread.of([each["steps"] for each in of_rounds]).text(0),
                Spread.of(best).text(4),
                Spread.of([each["cpu_ms_per_trial"] for each in of_rounds]).text(0),
            )
        )
    header = (
        *("search", "trials per hour", "over one after the other", "steps of all trials"),
        *("best loss", "coordinator's CPU per trial, ms"),
    )
    asha, plain = rounds[0]["asha"], rounds[0]["two at a time"]
    best = min(loss for loss in asha["losses"] if loss is not None)
    needed = steps_to(best, plain)
    compared = (
        f"no trial of {plain['steps']:,} steps without rungs was as good"
        if needed is None
        else f"{asha['steps'] / needed:.2f} of the {needed:,} steps without rungs for one as good"
    )
    starts = [each[name]["start_cpu_s"] for each in rounds for name in names]
    return (
        f"{measuring.table(header, rows)}\n\nASHA's best took {asha['steps']:,} steps: {compared}. "
        f"The coordinator's start: {Spread.of(starts).text(1)} s of CPU.\n\n{kills}"
    )


def killed() -> str:
    """Kills a search again and again, and returns what came out in a line."""
    words = ["python", "-m", "tests.processes.search_chaos"]
    with Process(words, limit_s=LIMIT_S) as chaos:
        return chaos.wait().splitlines()[-1]


def main() -> None:
    settings = measuring.arguments(__doc__, trials=24, epochs=4, rounds=1)
    began = measuring.machine()
    rounds = []
    for number in range(settings.rounds):
        rounds.append({})
        for name, flags in SEARCHES.items():
            rounds[-1][name] = measure(flags, settings.trials, settings.epochs)
            print(f"round {number + 1}, {name}: {rounds[-1][name]}", file=sys.stderr, flush=True)
    kills = killed()
    figures = {"rounds": rounds, "kills": kills}
    measuring.save_results(
        "search",
        vars(settings),
        began,
        figures,
        to_markdown(rounds, kills),
    )


if __name__ == "__main__":
    main()
