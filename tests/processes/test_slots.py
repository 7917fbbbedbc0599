"""Slots of a search on real hosts by ssh, and in a real Slurm cluster; trials are small scripts.

``make ssh`` and ``make slurm`` have more of it.
"""

from __future__ import annotations

import contextlib
import json
import re
import shlex
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.processes import ssh_hosts
from tests.processes.slurm_cluster import Cluster, skip_without_slurm
from tests.processes.ssh_hosts import Hosts, hosts_up
from tests.running import ROOT, Process, wait_until

LIMIT_S = 60
GONE_S = 5
# The arguments are a folder for notes, and the number of workers of all trials, which wait until
# all of them run: a trial that has to wait for another one's end would never come.
WORKER = """
import os, pathlib, signal, socket, sys, time
folder, workers = pathlib.Path(sys.argv[1]), int(sys.argv[2])
slot = int(os.environ["TF_SLOT"])
def note(text):
    with open(folder / f"{slot}-{os.getpid()}-{os.uname().nodename}", "a") as file:
        file.write(text + "\\n")
def save(number, _):
    note("saved")
    sys.exit(128 + number)
signal.signal(signal.SIGTERM, save)
note("threads " + os.environ["OMP_NUM_THREADS"])
while len(list(folder.iterdir())) < workers: time.sleep(0.05)
"""
SLEEPS = "time.sleep(300)"


def search(settings: dict[str, Any], folder: Path, workers: int, script: str) -> list[str]:
    """The command line that runs a script in all slots, as workers of trials."""
    given = json.dumps({"workdir": str(folder / "search"), "threads_per_trial": 3, **settings})
    (folder / "notes").mkdir()
    worker = [sys.executable, "-c", WORKER + script, str(folder / "notes"), str(workers)]
    return [sys.executable, "-m", "tests.processes.slots_at_once", given, *worker]


def notes(folder: Path) -> list[tuple[int, str, str]]:
    """Slot, node, and what it has noted, of each worker; in order."""
    found = []
    for path in (folder / "notes").iterdir():
        slot, _, node = path.name.split("-")
        found.append((int(slot), node, path.read_text()))
    return sorted(found)


def wait_for_workers(folder: Path, number: int) -> None:
    is_there = lambda: len(list((folder / "notes").iterdir())) == number  # noqa: E731
    wait_until(is_there, LIMIT_S, f"{number} workers run")


def ends(output: str) -> list[int]:
    """The exit codes of slots."""
    return [int(code) for code in re.findall(r"^.* ended with (-?\d+)$", output, re.MULTILINE)]


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hosts]:
    with hosts_up(tmp_path_factory.mktemp("hosts")) as hosts:
        yield hosts


def on(hosts: Hosts, names: str, **more: Any) -> dict[str, Any]:
    return {"hosts": names, "ssh_config": str(hosts.config), **more}


def start(hosts: Hosts, command: Sequence[str]) -> Process:
    enter = ("nsenter", f"--net=/run/netns/{hosts.hub}")
    return Process([*enter, *command], limit_s=LIMIT_S)


def test_trials_on_hosts_run_beside_each_other_and_end_with_their_codes(
    hosts: Hosts, tmp_path: Path
) -> None:
    # The second trial is on both hosts: one of its workers fails, the other one is lost.
    settings = on(hosts, "h1:3,h2:3", workers_per_trial=2)
    on_h1 = "os.uname().nodename == 'h1'"
    script = f"sys.exit([0, 1 if {on_h1} else 138, 138][slot])"
    with start(hosts, search(settings, tmp_path, 6, script)) as starter:
        output = starter.wait(0)
    assert ends(output) == [0, 1, 138]
    assert re.findall(r"^(h\S+) ended with", output, re.MULTILINE) == ["h1", "h1+h2", "h2"]
    places = [(slot, node) for slot, node, _ in notes(tmp_path)]
    assert places == [(0, "h1"), (0, "h1"), (1, "h1"), (1, "h2"), (2, "h2"), (2, "h2")]
    assert {text for _, _, text in notes(tmp_path)} == {"threads 3\n"}
    hosts.wait_until_empty(GONE_S)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_trials_on_hosts_end_with_their_starter(
    hosts: Hosts, tmp_path: Path, number: signal.Signals
) -> None:
    settings = on(hosts, "h1,h2")
    with start(hosts, search(settings, tmp_path, 2, SLEEPS)) as starter:
        wait_for_workers(tmp_path, 2)
        starter.signal(number)
        output = starter.wait(143 if number == signal.SIGTERM else -number)
        hosts.wait_until_empty(GONE_S)
    is_told = number == signal.SIGTERM
    assert ends(output) == ([143, 143] if is_told else [])
    assert ["saved" in text for _, _, text in notes(tmp_path)] == [is_told] * 2


def test_a_workdir_that_a_host_does_not_see_is_an_error(hosts: Hosts, tmp_path: Path) -> None:
    mounts = f"--mount=/proc/{hosts[1].sshd}/ns/mnt"
    (tmp_path / "search").mkdir()
    ssh_hosts.call("nsenter", mounts, "mount", "-t", "tmpfs", "none", str(tmp_path / "search"))
    try:
        settings = on(hosts, "h1,h2")
        with start(hosts, search(settings, tmp_path, 2, "")) as starter:
            output = starter.wait(2)
    finally:
        ssh_hosts.call("nsenter", mounts, "umount", str(tmp_path / "search"))
    assert "can't be seen on h2: use a folder on a file system that all hosts share" in output
    assert notes(tmp_path) == []


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    skip_without_slurm()
    with Cluster(nodes=2) as cluster:
        yield cluster


def submit(cluster: Cluster, folder: Path, command: Sequence[str], *flags: str) -> str:
    script = folder / "job.sbatch"
    lines = ("#!/bin/bash", f"cd {ROOT}", f"exec {shlex.join(command)}")
    script.write_text("\n".join(lines))
    return cluster.submit(script, *flags)


def test_trials_in_slurm_run_beside_each_other_and_end_with_their_codes(
    cluster: Cluster, tmp_path: Path
) -> None:
    # Of four workers, one fails in the second trial, and the other one is lost; srun says 138.
    script = "sys.exit([0, (1, 138)[int(os.environ['SLURM_PROCID'])]][slot])"
    command = search({"workers_per_trial": 2}, tmp_path, 4, script)
    shape = ("--nodes=2", "--ntasks-per-node=2", "--cpus-per-task=2")
    job = submit(cluster, tmp_path, command, *shape)
    cluster.wait_for_state(job, "COMPLETED", timeout_s=LIMIT_S)
    assert ends((tmp_path / "job.sbatch.out").read_text()) == [0, 1]
    places = [(slot, node) for slot, node, _ in notes(tmp_path)]
    first, second = places[0][1], places[2][1]
    assert places == [(0, first), (0, first), (1, second), (1, second)]
    assert {first, second} == {"n1", "n2"}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_trials_in_slurm_end_with_their_starter(
    cluster: Cluster, tmp_path: Path, number: signal.Signals
) -> None:
    command = search({}, tmp_path, 4, SLEEPS)
    job = submit(cluster, tmp_path, command, "--ntasks=4", "--cpus-per-task=2")
    wait_for_workers(tmp_path, 4)
    starter = cluster.pid_of("tests.processes.slots_at_once")
    cluster.run("kill", f"-{number.name.removeprefix('SIG')}", str(starter))
    ended = cluster.wait_for_state(job, "FAILED", timeout_s=LIMIT_S)
    is_told = number == signal.SIGTERM
    assert (ended["ExitCode"], ended["Restarts"]) == ("143:0" if is_told else "0:9", "0")
    output = (tmp_path / "job.sbatch.out").read_text()
    assert ends(output) == ([143] * 4 if is_told else [])
    if is_told:  # otherwise the job ends, and Slurm may still tell some of them
        assert all("saved" in text for _, _, text in notes(tmp_path))
    for node in ("n1", "n2"):
        wait_until(lambda node=node: not left_on(cluster, node), GONE_S, "nothing is left")


def left_on(cluster: Cluster, node: str) -> list[str]:
    with contextlib.suppress(AssertionError):
        return [line for line in cluster.programs(node) if "python" in line]
    return []
