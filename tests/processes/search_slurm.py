"""A search in a real Slurm, as deploy/slurm/search.sbatch starts it: ``make slurm``."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.processes.search_chaos import assert_alike
from tests.processes.search_ssh import LIMIT_S as SEARCH_LIMIT_S
from tests.processes.search_ssh import has_checkpoint
from tests.processes.search_ssh import search as search_on_digits
from tests.processes.slurm_cluster import Cluster, cluster, running_cluster
from tests.processes.test_slots import SLEEPS, ends, notes, search, wait_for_workers
from tests.running import ROOT, run, wait_until

__all__ = ["cluster", "running_cluster"]  # fixtures

LIMIT_S = 120
NODES = ["n1", "n2"]
FINISH_WHEN_QUEUED_AGAIN = "'SLURM_RESTART_COUNT' in os.environ or time.sleep(300)"


def submit(cluster: Cluster, folder: Path, script: str, *flags: str, parallel: int = 4) -> str:
    """Submits the file to copy, whose ``python`` runs a script in the slots that it finds."""
    command = search({"parallel": parallel}, folder, 4, script)
    return submit_command(cluster, folder, command, *flags)


def submit_command(cluster: Cluster, folder: Path, command: Sequence[str], *flags: str) -> str:
    """Submits the file to copy, whose ``python`` runs a command."""
    program = folder / "bin" / "python"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\nexec {shlex.join(command)}\n")
    program.chmod(0o755)
    file = ROOT / "deploy" / "slurm" / "search.sbatch"
    shape = ("--nodes=2", "--ntasks=4", "--cpus-per-task=2", f"--chdir={folder}")
    env = {"PATH": f"{program.parent}:{os.environ['PATH']}"}
    return cluster.run("sbatch", "--parsable", *shape, *flags, str(file), env=env).strip()


def output(folder: Path) -> str:
    return "".join(path.read_text() for path in folder.glob("search-*.log"))


def test_the_end_of_the_search_is_that_of_the_job(cluster: Cluster, tmp_path: Path) -> None:
    job = submit(cluster, tmp_path, "")
    ended = cluster.wait_for_state(job, "COMPLETED", "FAILED")
    assert (ended["JobState"], ended["Requeue"]) == ("COMPLETED", "1"), output(tmp_path)
    assert ends(output(tmp_path)) == [0] * 4


def test_what_does_not_fit_is_not_queued_again(cluster: Cluster, tmp_path: Path) -> None:
    job = submit(cluster, tmp_path, "", parallel=5)
    ended = cluster.wait_for_state(job, "FAILED")
    assert (ended["ExitCode"], ended["Restarts"]) == ("2:0", "0")
    assert "--parallel is 5, but this job's nodes have 2, 2 tasks" in output(tmp_path)


def test_a_search_goes_on_after_the_time_limit(cluster: Cluster, tmp_path: Path) -> None:
    """The limit comes near when the trials have started, however long that took."""
    job = submit(cluster, tmp_path, FINISH_WHEN_QUEUED_AGAIN, "--time=60")
    wait_for_workers(tmp_path, 4)
    cluster.run("scontrol", "update", f"JobId={job}", "TimeLimit=2")
    wait_until(lambda: cluster.job(job)["Restarts"] == "1", LIMIT_S, "it is queued again")
    cluster.run("scontrol", "update", f"JobId={job}", "TimeLimit=60")
    cluster.wait_for_state(job, "COMPLETED")
    assert ends(output(tmp_path)) == [143] * 4 + [0] * 4
    assert ["saved" in text for *_, text in notes(tmp_path)].count(True) == 4


def test_a_cancelled_search_stays_cancelled(cluster: Cluster, tmp_path: Path) -> None:
    job = submit(cluster, tmp_path, SLEEPS)
    wait_for_workers(tmp_path, 4)
    cluster.run("scancel", job)
    assert cluster.wait_for_state(job, "CANCELLED")["Restarts"] == "0"
    assert all("saved" in text for *_, text in notes(tmp_path))


def test_slurm_puts_a_search_back_that_lost_a_node(cluster: Cluster, tmp_path: Path) -> None:
    job = submit(cluster, tmp_path, FINISH_WHEN_QUEUED_AGAIN)
    wait_for_workers(tmp_path, 4)
    cluster.kill_node("n2")
    wait_until(lambda: cluster.job(job)["Restarts"] == "1", LIMIT_S, "it is queued again")
    cluster.restore("n2")
    cluster.wait_for_state(job, "COMPLETED", timeout_s=LIMIT_S)


def test_slurm_puts_a_preempted_search_back(cluster: Cluster, tmp_path: Path) -> None:
    job = submit(cluster, tmp_path, FINISH_WHEN_QUEUED_AGAIN)
    wait_for_workers(tmp_path, 4)
    cluster.run("srun", "--partition=urgent", "--nodes=2", "--exclusive", "true", limit_s=LIMIT_S)
    assert cluster.wait_for_state(job, "COMPLETED")["Restarts"] == "1"
    assert any("saved" in text for *_, text in notes(tmp_path))


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The workdir of a search on this machine, which nobody disturbed."""
    workdir = tmp_path_factory.mktemp("here") / "search"
    run(search_on_digits(workdir), limit_s=SEARCH_LIMIT_S)
    return workdir


def submit_search(cluster: Cluster, folder: Path, *flags: str) -> str:
    command = [sys.executable, *search_on_digits(folder / "there", "--parallel=2")[1:]]
    return submit_command(cluster, folder, command, *flags)


@pytest.mark.timeout(900)
def test_a_search_in_slurm_is_that_of_one_machine(
    cluster: Cluster, here: Path, tmp_path: Path
) -> None:
    job = submit_search(cluster, tmp_path)
    is_on_the_way = lambda: has_checkpoint(tmp_path / "there")  # noqa: E731
    wait_until(is_on_the_way, SEARCH_LIMIT_S, "a trial trains")
    cluster.run("scancel", "--signal=TERM", "--batch", job)
    ended = cluster.wait_for_state(job, "COMPLETED", "FAILED", timeout_s=SEARCH_LIMIT_S)
    assert (ended["JobState"], ended["Restarts"]) == ("COMPLETED", "1"), output(tmp_path)
    assert_alike(here, tmp_path / "there")


@pytest.mark.timeout(900)
def test_a_search_goes_on_without_a_node(cluster: Cluster, here: Path, tmp_path: Path) -> None:
    job = submit_search(cluster, tmp_path, "--no-kill", "--ntasks-per-node=1", "--ntasks=2")
    is_looked_at = (tmp_path / "there" / ".check").exists
    wait_until(is_looked_at, SEARCH_LIMIT_S, "a step was tried")
    (lost,) = set(NODES) - {cluster.job(job)["BatchHost"]}
    cluster.kill_node(lost)
    ended = cluster.wait_for_state(job, "COMPLETED", "FAILED", timeout_s=SEARCH_LIMIT_S)
    assert (ended["JobState"], ended["Restarts"]) == ("COMPLETED", "0"), output(tmp_path)
    assert "it starts again" in output(tmp_path)
    assert_alike(here, tmp_path / "there")
