"""Groups of processes that compute cases, and how far their results are apart."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tests.processes.workers import tf_configs
from tests.running import Process

SCALE = 1e-3  # numbers smaller than this are compared absolutely


@dataclasses.dataclass(frozen=True)
class Group:
    """Processes that compute the same cases together.

    Args:
        workers: how many processes; 0 for plain Keras in one.
        replicas: in each process.
    """

    workers: int
    replicas: int = 1

    @property
    def name(self) -> str:
        """For people."""
        if not self.workers:
            return "plain Keras"
        count, what = (self.workers, "worker") if self.workers > 1 else (self.replicas, "replica")
        return f"{count} {what}" + "s" * (count > 1)

    def start(
        self,
        cases: Sequence[str],
        folder: Path,
        limit_s: float,
        module: str = "tests.exactness.run",
    ) -> Running:
        """Starts the processes, which run ``module``; ``folder`` gets a folder for each."""
        configs = tf_configs(self.workers) if self.workers > 1 else [""]
        with contextlib.ExitStack() as stack:
            processes = []
            for index, config in enumerate(configs):
                env = {"TF_CONFIG": config} if config else {}
                if self.workers == 1:
                    env["REPLICAS"] = str(self.replicas)
                command = ["python", "-m", module, str(folder / str(index)), *cases]
                processes.append(stack.enter_context(Process(command, env=env, limit_s=limit_s)))
            return Running(self, folder, processes, stack.pop_all())


@dataclasses.dataclass(frozen=True)
class Running:
    """A group at work; use it in a ``with`` block."""

    group: Group
    folder: Path
    processes: list[Process]
    stack: contextlib.ExitStack

    def __enter__(self) -> Running:
        return self

    def __exit__(self, *_: object) -> None:
        self.stack.close()

    def wait(self) -> None:
        """Waits for all of them, however they end: results tell what came of each case."""
        for process in self.processes:
            with contextlib.suppress(AssertionError):
                process.wait(None)

    def results(self, case: str) -> list[dict[str, np.ndarray]]:
        """What each process found, by name; fails with their last words if one found nothing."""
        paths = [self.folder / str(i) / f"{case}.npz" for i in range(len(self.processes))]
        if not all(path.exists() for path in paths):
            tails = "\n".join(f"--- {i}\n{p.tail(40)}" for i, p in enumerate(self.processes))
            raise AssertionError(f"{self.group.name} did not come to the end of {case}:\n{tails}")
        return [dict(np.load(path)) for path in paths]


def largest_difference(
    ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray]
) -> tuple[float, str]:
    """The largest relative difference of two results, and where it is; NaN equals NaN."""
    if ours.keys() != theirs.keys():
        return np.inf, f"only one has {sorted(ours.keys() ^ theirs.keys())}"
    found = [(0.0, "")]
    for name, expected in theirs.items():
        if ours[name].shape != expected.shape:
            return np.inf, f"{name} has the shapes {ours[name].shape} and {expected.shape}"
        apart = np.abs(ours[name] - expected) / np.maximum(np.abs(expected), SCALE)
        apart = np.where(np.isnan(ours[name]) & np.isnan(expected), 0.0, apart)
        apart = np.where(ours[name] == expected, 0.0, apart)  # infinities
        if apart.size:
            found.append((float(np.nan_to_num(apart, nan=np.inf).max()), name))
    return max(found)
