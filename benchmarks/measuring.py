"""Code shared by the benchmarks: statistics, pinned processes, results with their origin.

A script measures in rounds that alternate between the systems it compares. It writes two files into
``benchmarks/results``: ``DATE-NAME.json`` with all figures, and ``DATE-NAME.md`` with tables.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import datetime
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.running import ROOT, Process, free_port

RESULTS = ROOT / "benchmarks" / "results"
PEERS_PYTHON = ROOT / ".bench" / "bin" / "python"  # made by `make peers`
MAX_BUSY_CORES = 0.1  # used by other work before the first round; above it, results are marked
BUSY_WINDOW_S = 2.0  # over which the use is averaged
WARM_UP_EPOCHS = 2
_REPORT_PREFIX = "FIGURES "


@dataclasses.dataclass(frozen=True)
class Spread:
    """Median, minimum and maximum over rounds."""

    median: float
    least: float
    most: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        return cls(statistics.median(values), min(values), max(values))

    def text(self, digits: int = 2) -> str:
        """Returns the text ``1.67 (1.60 to 1.71)``: median, minimum, maximum."""
        return f"{self.median:,.{digits}f} ({self.least:,.{digits}f} to {self.most:,.{digits}f})"


def ratios(ours: Sequence[float], others: Sequence[float]) -> Spread:
    """Returns the spread of ours over theirs, round by round: noise of a round cancels out."""
    return Spread.of([one / other for one, other in zip(ours, others, strict=True)])


class EpochTimes:
    """Times at which epochs of a training ended."""

    def __init__(self) -> None:
        self._ends_s: list[float] = []

    def record(self, *_: Any) -> None:
        """Records the end of an epoch; a Keras callback's ``on_epoch_end``."""
        self._ends_s.append(time.perf_counter())

    def step_s(self, steps_per_epoch: int) -> float:
        """Returns seconds per step, without the epochs that warm up."""
        epochs = len(self._ends_s) - WARM_UP_EPOCHS
        return (self._ends_s[-1] - self._ends_s[WARM_UP_EPOCHS - 1]) / epochs / steps_per_epoch


def report(**figures: Any) -> None:
    """Prints figures of a measured process for ``reports_in``; values are not nested."""
    # In one write: other processes may print into the same file.
    sys.stdout.write(f"{_REPORT_PREFIX}{json.dumps(figures)}\n")
    sys.stdout.flush()


def reports_in(output: str) -> list[dict[str, Any]]:
    """Returns the figures that processes reported in their output, in its order."""
    return [json.loads(text) for text in re.findall(rf"{_REPORT_PREFIX}(\{{.*?\}})", output)]


def run_pinned(
    commands: Sequence[Sequence[str]],
    envs: Sequence[Mapping[str, str]],
    *,
    cwd: Path = ROOT,
    limit_s: float = 300,
) -> list[str]:
    """Runs processes at the same time, each pinned to a core, until all have ended.

    Returns:
        The output of each process.
    """
    cores = os.cpu_count() or 1
    with contextlib.ExitStack() as stack:
        processes = [
            stack.enter_context(
                Process(
                    ["taskset", "-c", str(i % cores), *command], env=env, cwd=cwd, limit_s=limit_s
                )
            )
            for i, (command, env) in enumerate(zip(commands, envs, strict=True))
        ]
        return [process.wait() for process in processes]


def tf_configs(workers: int) -> list[dict[str, str]]:
    """Returns each worker's environment with TF_CONFIG on this machine; empty for one worker."""
    if workers == 1:
        return [{}]
    addresses = [f"127.0.0.1:{free_port()}" for _ in range(workers)]
    return [
        {
            "TF_CONFIG": json.dumps(
                {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": index}}
            )
        }
        for index in range(workers)
    ]


def arguments(doc: str | None, **defaults: Any) -> argparse.Namespace:
    """Parses a flag ``--name=value`` for each default; a tuple's values are separated by commas."""
    parser = _parser(doc)
    for name, default in defaults.items():
        if isinstance(default, bool):
            parser.add_argument(f"--{name}", action="store_true")
        elif isinstance(default, tuple):
            kind = type(default[0])
            parser.add_argument(
                f"--{name}",
                type=lambda text, kind=kind: tuple(map(kind, text.split(","))),
                default=default,
                help=f"default: {','.join(map(str, default))}",
            )
        else:
            parser.add_argument(
                f"--{name}", type=type(default), default=default, help="default: %(default)s"
            )
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder for the results")
    return parser.parse_args()


def rounds_argument(doc: str | None, default: int) -> int:
    """Parses the only argument of a script that writes no results: the number of rounds."""
    parser = _parser(doc)
    parser.add_argument("rounds", type=int, nargs="?", default=default, help="default: %(default)s")
    return int(parser.parse_args().rounds)


def _parser(doc: str | None) -> argparse.ArgumentParser:
    return argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )


def machine() -> dict[str, Any]:
    """Returns this machine's hardware and how busy it is with other work; takes two seconds."""
    import psutil  # not installed in the peers' environment

    names = re.findall(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    kilobytes = re.findall(r"MemTotal:\s*(\d+)", Path("/proc/meminfo").read_text())
    return {
        "cpu": names[0] if names else platform.machine(),
        "cores": os.cpu_count(),
        "memory_gib": round(int(kilobytes[0]) / 2**20),
        "kernel": platform.release(),
        # Not the load average, which contains an earlier script for minutes.
        "busy_cores_before": round(
            psutil.cpu_percent(BUSY_WINDOW_S) / 100 * (os.cpu_count() or 1), 2
        ),
    }


def versions(python: Path | str = sys.executable, *packages: str) -> dict[str, str]:
    """Returns versions of packages in the environment of ``python``, and of Python itself."""
    code = (
        "import importlib.metadata as m, json, platform, sys\n"
        "versions = {'python': platform.python_version()}\n"
        "for name in sys.argv[1:]:\n"
        "    versions[name] = m.version(name)\n"
        "print(json.dumps(versions))"
    )
    output = subprocess.run(
        [str(python), "-c", code, *packages], check=True, capture_output=True, text=True
    ).stdout
    version_of: dict[str, str] = json.loads(output)
    return version_of


def table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Returns a Markdown table; all columns but the first are aligned to the right."""
    rows = [[str(cell) for cell in row] for row in rows]
    alignment = ["---"] + ["---:"] * (len(header) - 1)
    return "\n".join(f"| {' | '.join(row)} |" for row in [list(header), alignment, *rows])


def save_results(
    name: str,
    settings: Mapping[str, Any],
    began: dict[str, Any],
    figures: Mapping[str, Any],
    text: str,
    *,
    packages: Sequence[str] = ("tensorflow", "keras"),
    peer_packages: Sequence[str] = (),
) -> None:
    """Writes and prints the results of a script, as ``save`` does.

    Args:
        name: of the script.
        settings: flags from ``arguments``; ``results`` is the folder to write into.
        began: ``machine()`` before the first round.
        figures: all measured values.
        text: the same values in Markdown, ratios first.
        packages: whose versions in this environment belong to the results.
        peer_packages: whose versions in the peers' environment do.
    """
    measured = versions(sys.executable, *packages)
    if peer_packages:
        measured |= versions(PEERS_PYTHON, *peer_packages)
    save(
        settings["results"],
        name,
        began=began,
        versions=measured,
        settings=settings,
        figures=figures,
        text=text,
    )


def save(
    folder: Path,
    name: str,
    *,
    began: dict[str, Any],
    versions: Mapping[str, str],
    settings: Mapping[str, Any],
    figures: Mapping[str, Any],
    text: str,
) -> None:
    """Writes results into two files and prints them.

    Args:
        folder: folder of the files.
        name: of the script; the files are ``DATE-NAME.json`` and ``DATE-NAME.md``.
        began: ``machine()`` before the first round.
        versions: by package.
        settings: flags of the script.
        figures: all measured values.
        text: the same values in Markdown, ratios first.
    """
    date = datetime.date.today().isoformat()
    result = {
        "name": name,
        "date": date,
        "machine": began,
        "versions": dict(versions),
        "settings": {
            key: str(value) if isinstance(value, Path) else value
            for key, value in settings.items()
            if key != "results"
        },
        "figures": figures,
    }
    busy_cores = began["busy_cores_before"]
    warning = (
        f"\n**{busy_cores} cores were busy with other work at the beginning: only ratios mean "
        "something, and not much.**\n"
        if busy_cores > MAX_BUSY_CORES
        else ""
    )
    origin = (
        f"{date}; {began['cpu']}, {began['cores']} cores, {began['memory_gib']} GiB, Linux "
        f"{began['kernel']}; " + ", ".join(f"{key} {value}" for key, value in versions.items())
    )
    folder.mkdir(parents=True, exist_ok=True)
    stem = folder / f"{date}-{name}"
    stem.with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n")
    stem.with_suffix(".md").write_text(f"# {name}\n{warning}\n{text}\n\n{origin}\n")
    print(f"{text}\n\n{origin}{warning}\n-> {stem}.json, .md")
