"""What the benchmarks share: medians and quantiles, pinned processes, results with their origin.

A script measures in rounds that alternate between what it compares, and writes two files into
``benchmarks/results``: ``DATE-NAME.json`` with everything, and ``DATE-NAME.md`` for people.
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
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.running import ROOT, Process, free_port

RESULTS = ROOT / "benchmarks" / "results"
PEERS_PYTHON = ROOT / ".bench" / "bin" / "python"  # made by `make peers`
QUIET_CORES = 0.1  # busy with other work before; with more, figures are marked
LOOKS_S = 2.0  # for how long that is looked at
_FIGURES = "FIGURES "


@dataclasses.dataclass(frozen=True)
class Spread:
    """Of some rounds, the median, the least and the most."""

    median: float
    least: float
    most: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        return cls(statistics.median(values), min(values), max(values))

    def text(self, digits: int = 2) -> str:
        """``1.67 (1.60 to 1.71)``."""
        return f"{self.median:,.{digits}f} ({self.least:,.{digits}f} to {self.most:,.{digits}f})"


def ratios(ours: Sequence[float], others: Sequence[float]) -> Spread:
    """Ours over theirs, round by round: what both shared of a noisy round falls out."""
    return Spread.of([one / other for one, other in zip(ours, others, strict=True)])


def quantile(values: Sequence[float], share: float) -> float:
    """The smallest of ``values`` that at least ``share`` of them don't exceed.

    No interpolation: the 0.99 quantile of 100 values is the 99th, of 50 the largest.
    """
    ordered = sorted(values)
    if not ordered or not 0 <= share <= 1:
        raise ValueError(f"no {share} quantile of {len(ordered)} values")
    # Counted in whole millionths: 0.07 * 100 is a little more than 7.
    least = -(-round(share * 1_000_000) * len(ordered) // 1_000_000)
    return ordered[max(0, least - 1)]


def report(**figures: Any) -> None:
    """What a measured process says of itself, for ``reports_in``; flat."""
    # In one write: others may print into the same file.
    sys.stdout.write(f"{_FIGURES}{json.dumps(figures)}\n")
    sys.stdout.flush()


def reports_in(output: str) -> list[dict[str, Any]]:
    """All that processes reported in their output, in its order."""
    return [json.loads(text) for text in re.findall(rf"{_FIGURES}(\{{.*?\}})", output)]


def run_pinned(
    commands: Sequence[Sequence[str]],
    envs: Sequence[Mapping[str, str]],
    *,
    cwd: Path = ROOT,
    limit_s: float = 300,
) -> list[str]:
    """Runs processes side by side, each on a core of its own, to their ends.

    Returns:
        What each of them printed.
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
    """An environment for each worker on this machine; of a single one, an empty one."""
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
    """Reads ``--name=value`` for each default; lists of words are separated by commas."""
    parser = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
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


def machine() -> dict[str, Any]:
    """What it is measured on, and how busy that is with other work; takes two seconds."""
    import psutil  # peers don't have it

    names = re.findall(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    kilobytes = re.findall(r"MemTotal:\s*(\d+)", Path("/proc/meminfo").read_text())
    return {
        "cpu": names[0] if names else platform.machine(),
        "cores": os.cpu_count(),
        "memory_gib": round(int(kilobytes[0]) / 2**20),
        "kernel": platform.release(),
        # Not the load average, in which a script that ran before stays for minutes.
        "busy_cores_before": round(psutil.cpu_percent(LOOKS_S) / 100 * (os.cpu_count() or 1), 2),
    }


def versions(python: Path | str = sys.executable, *packages: str) -> dict[str, str]:
    """Versions of packages in an environment, and of its Python."""
    code = (
        "import importlib.metadata as m, json, platform, sys\n"
        "found = {'python': platform.python_version()}\n"
        "for name in sys.argv[1:]:\n"
        "    found[name] = m.version(name)\n"
        "print(json.dumps(found))"
    )
    output = subprocess.run(
        [str(python), "-c", code, *packages], check=True, capture_output=True, text=True
    ).stdout
    found: dict[str, str] = json.loads(output)
    return found


def table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A table in Markdown; figures are set to the right."""
    rows = [[str(cell) for cell in row] for row in rows]
    rule = ["---"] + ["---:"] * (len(header) - 1)
    return "\n".join(f"| {' | '.join(row)} |" for row in [list(header), rule, *rows])


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
    """Writes what was found, and prints it.

    Args:
        folder: where to.
        name: of the figure: its file is called so, after the date.
        began: ``machine()``, asked before the first round.
        versions: of what was measured.
        settings: what it was asked for.
        figures: all that was measured.
        text: the same for people, in Markdown, ratios first.
    """
    date = datetime.date.today().isoformat()
    asked = {
        key: str(value) if isinstance(value, Path) else value for key, value in settings.items()
    }
    asked.pop("results", None)
    whole = {
        "name": name,
        "date": date,
        "machine": began,
        "versions": dict(versions),
        "settings": asked,
        "figures": figures,
    }
    busy = (
        f"\n**{began['busy_cores_before']} cores were busy when this began: only ratios mean "
        "something, and those not much.**\n"
        if began["busy_cores_before"] > QUIET_CORES
        else ""
    )
    origin = (
        f"{date}; {began['cpu']}, {began['cores']} cores, {began['memory_gib']} GiB, Linux "
        f"{began['kernel']}; " + ", ".join(f"{key} {value}" for key, value in versions.items())
    )
    folder.mkdir(parents=True, exist_ok=True)
    stem = folder / f"{date}-{name}"
    stem.with_suffix(".json").write_text(json.dumps(whole, indent=1) + "\n")
    stem.with_suffix(".md").write_text(f"# {name}\n{busy}\n{text}\n\n{origin}\n")
    print(f"{text}\n\n{origin}{busy}\n-> {stem}.json, .md")
