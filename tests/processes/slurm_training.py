"""Training in a real Slurm cluster, disturbed in many ways: ``make slurm``."""

from __future__ import annotations

import contextlib
import os
import shlex
import sys
from pathlib import Path

import pytest

from tests.processes.slurm_cluster import Cluster, cluster, running_cluster
from tests.processes.test_train import RECIPE, STEPS, Hold, command, summary, wait_for_checkpoint
from tests.processes.workers import Workers
from tests.running import ROOT, wait_until

__all__ = ["cluster", "running_cluster"]  # fixtures

LIMIT_S = 200
NODES = ["n1", "n2"]


def train(workdir: Path, *flags: str) -> str:
    """The command of a worker."""
    return shlex.join([sys.executable, *command(workdir, *flags)[1:]])


def batch(folder: Path, line: str) -> Path:
    path = folder / "job.sbatch"
    path.write_text(f"#!/bin/bash\nexec {line}\n")
    return path


class Job:
    """A run on two nodes under ``cluster.slurm``, held after its first steps until ``finish``."""

    def __init__(self, cluster: Cluster, folder: Path, *sbatch: str) -> None:
        self._cluster = cluster
        self.hold = Hold(folder)
        self.workdir = folder / "run"
        script = batch(folder, f"{sys.executable} -m cluster.slurm -- {train(self.workdir)}")
        self.number = cluster.submit(script, "--nodes=2", *sbatch, env=self.hold.env)
        self.output = Path(f"{script}.out")
        wait_for_checkpoint(self.workdir, 8)

    def wait_for(self, text: str) -> None:
        wait_until(lambda: text in self.output.read_text(), LIMIT_S, text)

    def finish(self) -> dict[str, str]:
        """Waits until the job has completed; returns what Slurm says about it."""
        with contextlib.suppress(FileNotFoundError):
            self.hold.end()
        try:
            return self._cluster.wait_for_state(self.number, "COMPLETED", timeout_s=LIMIT_S)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.output.read_text()}") from None


def assert_same(workdir: Path, undisturbed: Path) -> None:
    assert summary(workdir)["steps"] == summary(undisturbed)["steps"]
    assert summary(workdir)["weights_sha256"] == summary(undisturbed)["weights_sha256"]


def test_the_file_to_copy_trains(cluster: Cluster, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(RECIPE.read_text())
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    flags = ("--parsable", f"--chdir={tmp_path}", "--nodes=2")
    file = ROOT / "deploy" / "slurm" / "tfdp.sbatch"
    job = cluster.run("sbatch", *flags, str(file), env={"PATH": path}).strip()
    ended = cluster.wait_for_state(job, "COMPLETED", "FAILED", timeout_s=LIMIT_S)
    output = (tmp_path / f"mine-{job}.log").read_text()
    assert (ended["JobState"], ended["Requeue"]) == ("COMPLETED", "1"), output
    assert "[slurm] all workers have finished" in output
    assert summary(tmp_path / "runs" / "mine")["workers"] == 2


def test_srun_alone_starts_a_run(cluster: Cluster, undisturbed: Path, tmp_path: Path) -> None:
    workdir = tmp_path / "run"
    cluster.run("srun", "--nodes=2", *shlex.split(train(workdir)), limit_s=LIMIT_S)
    assert_same(workdir, undisturbed)


def test_ranks_may_be_cyclic_and_nodes_may_have_several(cluster: Cluster, tmp_path: Path) -> None:
    with Workers([command(tmp_path / "undisturbed")] * 4, limit_s=LIMIT_S) as workers:
        workers.wait(0, 0, 0, 0)
    tasks = ("--nodes=2", "--ntasks-per-node=2", "--distribution=cyclic", "--label")
    output = cluster.run("srun", *tasks, *shlex.split(train(tmp_path / "run")), limit_s=LIMIT_S)
    assert "0: tfdp: finished at step" in output
    assert summary(tmp_path / "run")["workers"] == 4
    assert_same(tmp_path / "run", tmp_path / "undisturbed")


def test_a_batch_script_without_srun_is_told_so(cluster: Cluster, tmp_path: Path) -> None:
    script = batch(tmp_path, train(tmp_path / "run"))
    job = cluster.submit(script, "--nodes=2")
    assert cluster.wait_for_state(job, "FAILED")["ExitCode"] == "2:0"
    assert "start the workers with srun" in Path(f"{script}.out").read_text()


@pytest.mark.parametrize("how", ["srun --ntasks=1", "salloc --nodes=2", "sbatch"])
def test_one_process_trains_alone(cluster: Cluster, tmp_path: Path, how: str) -> None:
    workdir = tmp_path / "run"
    if how == "sbatch":
        job = cluster.submit(batch(tmp_path, train(workdir)))
        cluster.wait_for_state(job, "COMPLETED", timeout_s=LIMIT_S)
    else:
        cluster.run(*how.split(), *shlex.split(train(workdir)), limit_s=LIMIT_S)
    assert (summary(workdir)["workers"], summary(workdir)["steps"]) == (1, STEPS)


@pytest.mark.timeout(500)
@pytest.mark.parametrize("whom", ["TERM@1200", "B:TERM@1200"])
def test_time_limit(cluster: Cluster, undisturbed: Path, tmp_path: Path, whom: str) -> None:
    """The limit comes near when the run has begun, however long that took."""
    job = Job(cluster, tmp_path, "--time=60", f"--signal={whom}")
    update = ("scontrol", "update", f"JobId={job.number}")
    cluster.run(*update, "TimeLimit=20")
    job.wait_for("got SIGTERM: saving, then stopping")
    job.hold.end()
    job.wait_for("putting job")
    cluster.run(*update, "TimeLimit=60")
    assert job.finish()["Restarts"] == "1"
    assert_same(job.workdir, undisturbed)


@pytest.mark.timeout(500)
def test_preemption(cluster: Cluster, undisturbed: Path, tmp_path: Path) -> None:
    job = Job(cluster, tmp_path)
    cluster.run("srun", "--partition=urgent", "--nodes=2", "--exclusive", "true", limit_s=LIMIT_S)
    assert job.finish()["Restarts"] == "1"
    assert_same(job.workdir, undisturbed)


@pytest.mark.timeout(500)
def test_cancelled(cluster: Cluster, undisturbed: Path, tmp_path: Path) -> None:
    """The run is saved, and the same script goes on with it."""
    job = Job(cluster, tmp_path)
    cluster.run("scancel", job.number)
    cluster.wait_for_state(job.number, "CANCELLED")
    wait_until(lambda: cluster.idle_nodes() == NODES, LIMIT_S, "all nodes are idle")
    assert cluster.job(job.number)["JobState"] == "CANCELLED"
    job.number = cluster.submit(tmp_path / "job.sbatch", "--nodes=2")
    job.finish()
    assert_same(job.workdir, undisturbed)


@pytest.mark.timeout(500)
@pytest.mark.parametrize("dead", NODES)
def test_dead_node(cluster: Cluster, undisturbed: Path, tmp_path: Path, dead: str) -> None:
    job = Job(cluster, tmp_path, "--nodelist=n1,n2")
    cluster.kill_node(dead)
    wait_until(lambda: cluster.job(job.number)["Restarts"] == "1", LIMIT_S, "it is queued again")
    cluster.restore(dead)
    job.finish()
    assert_same(job.workdir, undisturbed)


@pytest.mark.timeout(500)
def test_an_array_trains_two_runs(cluster: Cluster, undisturbed: Path, tmp_path: Path) -> None:
    workdir = f"{tmp_path}/run-$SLURM_ARRAY_TASK_ID"
    line = f"{sys.executable} -m cluster.slurm -- {train(tmp_path / 'run')}"
    script = batch(tmp_path, line.replace(str(tmp_path / "run"), workdir))
    job = cluster.submit(script, "--array=0-1", "--nodes=2")
    for element in range(2):
        cluster.wait_for_state(f"{job}_{element}", "COMPLETED", timeout_s=LIMIT_S)
        assert_same(tmp_path / f"run-{element}", undisturbed)
