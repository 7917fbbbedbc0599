"""A real Slurm cluster on this machine: each node has a network and a hostname of its own.

All of it lives in one PID namespace, and in mounts and networks that nobody else sees. The kernel
takes it down with the first process of the namespace, which dies with the test, however that ends.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.processes import slurm_daemons
from tests.running import ROOT, Process, run, wait_until

PROGRAMS = ("slurmctld", "slurmd", "srun", "munged", "ip", "unshare", "nsenter")
NAMESPACES = ("--pid", "--net", "--uts", "--mount", "--ipc")
UNSHARE = ("unshare", *NAMESPACES, "--mount-proc", "--fork", "--kill-child", "--")
LIMIT_S = 3600
IDLE_S = 200  # for all nodes to be idle again


def skip_without_slurm() -> None:
    """Skips a test, with the reason, where Slurm can't be run."""
    if missing := [name for name in PROGRAMS if shutil.which(name) is None]:
        pytest.skip(f"a Slurm cluster needs {', '.join(missing)}")
    if os.geteuid() != 0:
        pytest.skip("a Slurm cluster in network namespaces needs root")
    tried = subprocess.run([*UNSHARE, "true"], capture_output=True, text=True, timeout=20)
    if tried.returncode != 0:
        pytest.skip(f"no namespaces here: {tried.stderr.strip()}")


class Cluster:
    """A running cluster of nodes ``n1``, ``n2``, …; use it in a ``with`` block.

    Args:
        nodes: number of nodes.
    """

    def __init__(self, nodes: int = 2) -> None:
        daemons = (sys.executable, slurm_daemons.__file__, str(nodes))
        self._outside = Process([*UNSHARE, *daemons], limit_s=LIMIT_S)
        try:
            self._outside.wait_for("daemons have started")
            children = Path(f"/proc/{self._outside.pid}/task/{self._outside.pid}/children")
            self._first_pid = int(children.read_text().split()[0])
            everyone = slurm_daemons.node_names(nodes)
            wait_until(lambda: self.idle_nodes() == everyone, 60, "all nodes are idle")
        except BaseException:
            self.__exit__(AssertionError)
            raise

    def __enter__(self) -> Cluster:
        return self

    def __exit__(self, kind: Any, *_: object) -> None:
        if kind is not None:
            print(self.logs())
        self._outside.__exit__()

    def command(self, *command: str) -> list[str]:
        """Returns the command line that runs a command as a user of the cluster would."""
        environment = ("env", f"--chdir={ROOT}", f"SLURM_CONF={slurm_daemons.CONF}")
        words = [sys.executable if word == "python" else word for word in command]
        return ["nsenter", f"--target={self._first_pid}", *NAMESPACES, *environment, *words]

    def run(self, *command: str, expect: int | None = 0, **options: Any) -> str:
        """Runs a command on the cluster to its end and returns its output."""
        return run(self.command(*command), expect=expect, **{"limit_s": 60, **options})

    def start(self, *command: str, **options: Any) -> Process:
        """Starts a command on the cluster; use it in a ``with`` block."""
        return Process(self.command(*command), **options)

    def submit(self, script: Path, *flags: str, env: Mapping[str, str] | None = None) -> str:
        """Submits a batch script, whose output is in a file beside it; returns the job's number."""
        output = ("--open-mode=append", f"--output={script}.out")
        return self.run("sbatch", "--parsable", *output, *flags, str(script), env=env).strip()

    def idle_nodes(self) -> list[str]:
        """Nodes that are up and run nothing; none while the controller does not answer."""
        shown = self.run("sinfo", "-h", "-N", "-p", "main", "-t", "idle", "-o", "%n", expect=None)
        return sorted(set(re.findall(r"^n\d+$", shown, re.MULTILINE)))

    def job(self, number: str) -> dict[str, str]:
        """What Slurm says about a job: JobState, Restarts, Reason, …"""
        shown = self.run("scontrol", "show", "job", number, "--oneliner")
        return dict(re.findall(r"(\S+?)=(\S*)", shown))

    def wait_for_state(self, number: str, *states: str, timeout_s: float = 120) -> dict[str, str]:
        """Waits until a job is in one of the states; returns what Slurm says about it."""

        def found() -> dict[str, str] | None:
            job = self.job(number)
            return job if job["JobState"] in states else None

        try:
            waited: dict[str, str] = wait_until(found, timeout_s, f"{number} is {states}")
            return waited
        except AssertionError as error:
            raise AssertionError(f"{error}; it is {self.job(number)}") from None

    def programs(self, node: str) -> list[str]:
        """The command lines of the processes on a node."""
        pids = f"$(ip netns pids {node} | paste -sd,)"
        shown = self.run("sh", "-c", f"ps --no-headers -o args -p 0,{pids}", expect=None)
        return shown.splitlines()

    def pid_of(self, module: str, node: str = "") -> int:
        """The number on the cluster of the process that runs ``python -m module``.

        Args:
            module: name of the module.
            node: where to look for it; by default, on all nodes and on the controller's host.
        """
        command = f"^[^ ]*python[^ ]* -m {re.escape(module)}( |$)"
        enter = ("nsenter", f"--net=/run/netns/{node}") if node else ()
        where = ("--ns=$$", "--nslist=net") if node else ()
        script = f"pgrep --full {' '.join(where)} -- '{command}'"
        return int(self.run(*enter, "sh", "-c", script))

    def kill(self, *pids: int) -> None:
        """Sends SIGKILL to processes of the cluster."""
        self.run("kill", "-KILL", *map(str, pids))

    def kill_node(self, node: str) -> None:
        """Ends all processes on a node at once: slurmd and what it has started."""
        # One of them may have ended by itself after it was listed.
        self.run("sh", "-c", f"kill -KILL $(ip netns pids {node})", expect=None)

    def kill_slurmd(self, node: str) -> None:
        """Ends slurmd on a node; what it has started goes on."""
        kill = "pkill --signal=KILL --ns=$$ --nslist=net '^slurmd'"
        self.run("nsenter", f"--net=/run/netns/{node}", "sh", "-c", kill)

    def unplug(self, node: str) -> None:
        """Takes a node from the network; its processes go on."""
        self.run("ip", "-n", node, "link", "set", "cable", "down")

    def restore(self, node: str) -> None:
        """Lets a node that was killed or unplugged take part again."""
        self.run("ip", "-n", node, "link", "set", "cable", "up")
        if "slurmd -D" not in "".join(self.programs(node)):
            self.run("setsid", "--fork", *slurm_daemons.slurmd(node))

    def clear(self, nodes: Sequence[str], timeout_s: float) -> None:
        """Ends all jobs, and waits until all nodes are idle."""
        self.run("scancel", "--user=root")
        for node in nodes:
            self.restore(node)
        wait_until(lambda: self.idle_nodes() == list(nodes), timeout_s, "all nodes are idle")

    def logs(self) -> str:
        """The last lines of all daemons."""
        with contextlib.suppress(OSError, AttributeError):
            folder = Path(f"/proc/{self._first_pid}/root{slurm_daemons.STATE}/log")
            return "\n".join(
                f"--- {path.name}\n" + "\n".join(path.read_text().splitlines()[-30:])
                for path in sorted(folder.iterdir())
            )
        return self._outside.output


@pytest.fixture(scope="module")
def running_cluster() -> Iterator[Cluster]:
    """Two nodes."""
    skip_without_slurm()
    with Cluster(nodes=2) as cluster:
        yield cluster


@pytest.fixture
def cluster(running_cluster: Cluster) -> Iterator[Cluster]:
    """Two nodes, all of them idle."""
    yield running_cluster
    running_cluster.clear(["n1", "n2"], IDLE_S)
