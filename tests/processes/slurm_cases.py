"""``python -m cluster.slurm`` in a real Slurm cluster: ``make slurm``.

The workers are small scripts. They write what happens to them into files, because a job's output
is no evidence of what a worker did.
"""

from __future__ import annotations

import re
import shlex
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.processes.slurm_cluster import Cluster, skip_without_slurm
from tests.running import wait_until

# Names that the workers' scripts use; the first argument is the folder of their notes.
PRELUDE = """
import os, pathlib, signal, sys, time
folder, rank = pathlib.Path(sys.argv[1]), int(os.environ["SLURM_PROCID"])
def note(text):
    with open(folder / f"worker-{rank}", "a") as file: file.write(text + "\\n")
def save(number, _):
    note(f"got {number}")
    time.sleep(1)
    note("saved")
    sys.exit(128 + number)
for number in (signal.SIGTERM, signal.SIGINT): signal.signal(number, save)
note(f"start {os.environ['SLURM_STEP_NUM_TASKS']} {os.environ['SLURMD_NODENAME']}")
starts = (folder / f"worker-{rank}").read_text().count("start")
def sleep(): time.sleep(300)
"""
FINISH_WHEN_RESTARTED = "starts > 1 or sleep()"
LIMIT_S = 120
NODES = ["n1", "n2", "n3"]
ENDED = "the job ends: it was cancelled, preempted, or is over its time limit"


@pytest.fixture(scope="module")
def running_cluster() -> Iterator[Cluster]:
    skip_without_slurm()
    with Cluster(nodes=3) as cluster:
        yield cluster


@pytest.fixture
def cluster(running_cluster: Cluster) -> Iterator[Cluster]:
    """The cluster, with all of its nodes idle."""
    yield running_cluster
    running_cluster.clear(NODES, LIMIT_S)
    for node in NODES:
        assert "cluster.slurm.task" not in "".join(running_cluster.programs(node))


class Workers:
    """What the workers of a job have noted in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def notes(self, rank: int) -> list[str]:
        path = self.folder / f"worker-{rank}"
        return path.read_text().splitlines() if path.exists() else []

    def starts(self, rank: int) -> int:
        return sum(note.startswith("start") for note in self.notes(rank))

    def wait_for_start(self, workers: int, number: int = 1) -> None:
        """Waits until each of so many workers has started so often."""
        wait_until(
            lambda: all(self.starts(rank) == number for rank in range(workers)),
            LIMIT_S,
            f"{workers} workers have started {number} times",
        )

    def assert_saved_once(self, workers: int, number: int = signal.SIGTERM) -> None:
        """Each worker got one signal, and had the time to save."""
        for rank in range(workers):
            assert self.notes(rank)[1:3] == [f"got {number}", "saved"], self.notes(rank)


def keeper(script: str, folder: Path, *flags: str) -> list[str]:
    """The command line of ``cluster.slurm``."""
    worker = (sys.executable, "-c", PRELUDE + script, str(folder))
    return [sys.executable, "-m", "cluster.slurm", *flags, "--", *worker]


def batch(folder: Path, *lines: str) -> Path:
    path = folder / "job.sbatch"
    path.write_text("\n".join(["#!/bin/bash", *lines, ""]))
    return path


def submit(
    cluster: Cluster, folder: Path, script: str, *sbatch: str, flags: tuple[str, ...] = ()
) -> str:
    """Submits a job as docs/clusters/slurm.md shows it; one task on each of two nodes."""
    command = shlex.join(keeper(script, folder, *flags))
    return cluster.submit(batch(folder, f"exec {command}"), "--nodes=2", *sbatch)


def said(folder: Path) -> list[str]:
    """The lines of ``cluster.slurm`` itself."""
    return re.findall(r"^\[slurm\] (.*)$", (folder / "job.sbatch.out").read_text(), re.MULTILINE)


def exit_code(job: dict[str, str]) -> int:
    code, _, number = job["ExitCode"].partition(":")
    assert number == "0"
    return int(code)


@pytest.mark.parametrize(
    ("script", "code", "starts"),
    [
        ("", 0, 1),
        ("sys.exit(1 if rank == 1 else 138)", 1, 1),  # srun ends with 138
        ("rank or time.sleep(0.5); sys.exit((138, 2)[rank])", 2, 1),
        ("sys.exit(0 if starts > 2 else 138)", 0, 3),
        ("rank or starts > 1 or os.kill(os.getpid(), signal.SIGKILL)", 0, 2),
        ("starts > 1 or rank or os.kill(os.getppid(), signal.SIGKILL)", 0, 2),
        ("starts > 1 or sys.exit(138) if rank else starts > 1 or os.kill(os.getpid(), 19)", 0, 2),
        ("sys.exit(138)", 138, 3),
        ("rank or sleep(); sys.exit(143)", 138, 3),  # somebody has stopped this worker alone
    ],
)
def test_a_run_ends_or_starts_again_by_the_codes_of_all_workers(
    cluster: Cluster, tmp_path: Path, script: str, code: int, starts: int
) -> None:
    job = submit(cluster, tmp_path, script, flags=("--max_restarts=2",))
    ended = cluster.wait_for_state(job, "COMPLETED", "FAILED")
    assert exit_code(ended) == code
    assert ended["Restarts"] == "0"
    assert Workers(tmp_path).starts(1) == starts


def test_tasks_are_those_of_the_job_and_srun_gets_flags(cluster: Cluster, tmp_path: Path) -> None:
    flags = ("--srun_flags=--distribution=cyclic", "--srun_flags=--label --quiet")
    tasks = ("--ntasks-per-node=2", "--cpus-per-task=2")
    script = 'print(os.environ["SLURM_CPUS_PER_TASK"], len(os.sched_getaffinity(0)) > 0)'
    job = submit(cluster, tmp_path, script, *tasks, flags=flags)
    cluster.wait_for_state(job, "COMPLETED")
    notes = [Workers(tmp_path).notes(rank) for rank in range(5)]
    first, second = sorted({note.split()[-1] for note in notes[0] + notes[1]})
    assert notes == [[f"start 4 {first}"], [f"start 4 {second}"]] * 2 + [[]]
    lines = (tmp_path / "job.sbatch.out").read_text().splitlines()
    assert sorted(lines[:4]) == [f"{rank}: 2 True" for rank in range(4)]


def test_what_srun_refuses_is_not_tried_again(cluster: Cluster, tmp_path: Path) -> None:
    job = submit(cluster, tmp_path, "", flags=("--srun_flags=--no-such-flag",))
    assert 0 < exit_code(cluster.wait_for_state(job, "FAILED")) < 128
    assert "no-such-flag" in (tmp_path / "job.sbatch.out").read_text()


def test_a_killed_srun_costs_a_restart_within_the_job(cluster: Cluster, tmp_path: Path) -> None:
    job = submit(cluster, tmp_path, FINISH_WHEN_RESTARTED)
    Workers(tmp_path).wait_for_start(2)
    cluster.run("sh", "-c", "kill -KILL $(pgrep -x srun)")
    assert cluster.wait_for_state(job, "COMPLETED")["Restarts"] == "0"
    assert [Workers(tmp_path).starts(rank) for rank in range(2)] == [2, 2]


def test_a_cancelled_job_stays_cancelled(cluster: Cluster, tmp_path: Path) -> None:
    job = submit(cluster, tmp_path, "sleep()")
    Workers(tmp_path).wait_for_start(2)
    cluster.run("scancel", job)
    cluster.wait_for_state(job, "CANCELLED")
    for rank in range(2):
        assert Workers(tmp_path).notes(rank)[-1] == "saved"
    assert said(tmp_path) == [
        "the job ends: it was cancelled, preempted, or is over its time limit"
    ]


@pytest.mark.parametrize("whom", [(), ("--batch",)], ids=["step", "batch"])
def test_a_job_that_is_told_to_stop_saves_and_goes_back_into_the_queue(
    cluster: Cluster, tmp_path: Path, whom: tuple[str, ...]
) -> None:
    job = submit(cluster, tmp_path, FINISH_WHEN_RESTARTED)
    Workers(tmp_path).wait_for_start(2)
    cluster.run("scancel", "--signal=TERM", *whom, job)
    ended = cluster.wait_for_state(job, "COMPLETED")
    assert ended["Restarts"] == "1"
    Workers(tmp_path).assert_saved_once(2)
    assert f"putting job {job} back into the queue" in said(tmp_path)


@pytest.mark.parametrize("whom", ["TERM@1200", "B:TERM@1200"])
def test_time_limit(cluster: Cluster, tmp_path: Path, whom: str) -> None:
    """The limit comes near when the workers have started, however long that took."""
    limit = ("--time=60", f"--signal={whom}")
    job = submit(cluster, tmp_path, FINISH_WHEN_RESTARTED, *limit)
    Workers(tmp_path).wait_for_start(2)
    cluster.run("scontrol", "update", f"JobId={job}", "TimeLimit=20")
    line = f"putting job {job} back into the queue"
    wait_until(lambda: line in said(tmp_path), LIMIT_S, line)
    cluster.run("scontrol", "update", f"JobId={job}", "TimeLimit=60")
    assert cluster.wait_for_state(job, "COMPLETED")["Restarts"] == "1"
    Workers(tmp_path).assert_saved_once(2)


def test_slurm_itself_puts_a_preempted_job_back(cluster: Cluster, tmp_path: Path) -> None:
    job = submit(cluster, tmp_path, FINISH_WHEN_RESTARTED, "--nodes=3")
    Workers(tmp_path).wait_for_start(3)
    cluster.run("srun", "--partition=urgent", "--nodes=3", "--exclusive", "true", limit_s=LIMIT_S)
    assert cluster.wait_for_state(job, "COMPLETED")["Restarts"] == "1"
    assert ENDED in said(tmp_path)
    # It may come twice at the same moment: from Slurm itself, and passed on by srun.
    assert "saved" in Workers(tmp_path).notes(1)


def test_a_job_with_a_dead_node_goes_back_into_the_queue(cluster: Cluster, tmp_path: Path) -> None:
    job = submit(cluster, tmp_path, FINISH_WHEN_RESTARTED, "--nodelist=n1,n2")
    Workers(tmp_path).wait_for_start(2)
    cluster.kill_node("n2")
    line = f"putting job {job} back into the queue"
    wait_until(lambda: line in said(tmp_path), LIMIT_S, line)
    assert "nothing can be started on n2 any more" in said(tmp_path)
    cluster.restore("n2")
    assert cluster.wait_for_state(job, "COMPLETED")["Restarts"] == "1"


@pytest.mark.parametrize("how", ["unplug", "kill_node"])
@pytest.mark.parametrize("which", ["first", "last"])
def test_a_job_outlives_each_of_its_nodes(
    cluster: Cluster, tmp_path: Path, how: str, which: str
) -> None:
    """It goes on on the nodes that are left; Slurm itself or our command puts it back first."""
    job = submit(cluster, tmp_path, FINISH_WHEN_RESTARTED)
    Workers(tmp_path).wait_for_start(2)
    first = cluster.job(job)["BatchHost"]
    nodes = [note.split()[-1] for rank in range(2) for note in Workers(tmp_path).notes(rank)]
    dead = next(node for node in nodes if (node == first) == (which == "first"))
    getattr(cluster, how)(dead)
    assert cluster.wait_for_state(job, "COMPLETED", timeout_s=180)["Restarts"] == "1"


@pytest.mark.parametrize("how", ["kill_node", "kill_slurmd"])
def test_a_job_goes_on_without_a_dead_node_if_it_may(
    cluster: Cluster, tmp_path: Path, how: str
) -> None:
    nodes = ("--nodes=3", "--no-kill", "--ntasks-per-node=2")
    job = submit(cluster, tmp_path, FINISH_WHEN_RESTARTED, *nodes, flags=("--min_workers=4",))
    Workers(tmp_path).wait_for_start(6)
    host = cluster.job(job)["BatchHost"]
    dead = next(node for node in NODES if node != host)
    getattr(cluster, how)(dead)
    ended = cluster.wait_for_state(job, "COMPLETED")
    assert (ended["Restarts"], exit_code(ended)) == ("0", 0)
    left = [node for node in NODES if node != dead]
    restarted = [Workers(tmp_path).notes(rank)[-1] for rank in range(4)]
    assert restarted == [f"start 4 {node}" for node in left for _ in range(2)]


def test_an_element_of_an_array_goes_back_alone(cluster: Cluster, tmp_path: Path) -> None:
    folders = [tmp_path / "0", tmp_path / "1"]
    for folder in folders:
        folder.mkdir()
    command = keeper(FINISH_WHEN_RESTARTED, Path("FOLDER"))
    text = shlex.join(command).replace("FOLDER", f"{tmp_path}/$SLURM_ARRAY_TASK_ID")
    job = cluster.submit(batch(tmp_path, f"exec {text}"), "--array=0-1", "--nodes=1", "--ntasks=2")
    for folder in folders:
        Workers(folder).wait_for_start(2)
    cluster.run("scancel", "--signal=TERM", f"{job}_1")
    assert cluster.wait_for_state(f"{job}_1", "COMPLETED")["Restarts"] == "1"
    Workers(folders[1]).assert_saved_once(2)
    assert cluster.job(f"{job}_0")["JobState"] == "RUNNING"
    assert Workers(folders[0]).starts(0) == 1


def test_a_second_signal_kills_workers_that_do_not_end(cluster: Cluster, tmp_path: Path) -> None:
    script = """
for number in (signal.SIGTERM, signal.SIGINT): signal.signal(number, lambda n, _: note(f"got {n}"))
while True: time.sleep(1)"""
    command = ["salloc", "--nodes=2", *keeper(script, tmp_path)]
    with cluster.start(*command, limit_s=LIMIT_S) as process:
        Workers(tmp_path).wait_for_start(2)
        keeper_pid = cluster.pid_of("cluster.slurm")
        for count in (1, 2):
            cluster.run("kill", "-INT", str(keeper_pid))
            process.wait_for("(?s)" + ".*".join([r"sending SIG(INT|KILL)"] * count))
            time.sleep(1)  # signals of the same moment count as one
        process.wait(130)
    assert Workers(tmp_path).notes(0)[1:] == ["got 2"]


def test_nothing_outlives_a_killed_keeper_in_salloc(cluster: Cluster, tmp_path: Path) -> None:
    shell = f"{shlex.join(keeper('sleep()', tmp_path))}; echo ended with $?; sleep 300"
    with cluster.start("salloc", "--nodes=2", "sh", "-c", shell, limit_s=LIMIT_S) as process:
        Workers(tmp_path).wait_for_start(2)
        cluster.kill(cluster.pid_of("cluster.slurm"))
        process.wait_for("ended with 137")
        for node in ("n1", "n2"):
            wait_until(
                lambda node=node: not [p for p in cluster.programs(node) if str(tmp_path) in p],
                LIMIT_S,
                f"nothing is left on {node}",
            )


def test_without_scontrol_the_batch_script_decides(cluster: Cluster, tmp_path: Path) -> None:
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "srun").symlink_to("/usr/bin/srun")
    command = shlex.join(keeper("sleep()", tmp_path))
    lines = (f"PATH={programs} {command} & child=$!", "trap 'kill $child' TERM")
    wait = "while :; do wait $child; code=$?; kill -0 $child 2>/dev/null || break; done"
    script = batch(tmp_path, *lines, wait, "exit $code")
    job = cluster.submit(script, "--nodes=2")
    Workers(tmp_path).wait_for_start(2)
    cluster.run("scancel", "--signal=TERM", job)
    assert exit_code(cluster.wait_for_state(job, "FAILED")) == 143
    assert sum("can't be run here" in line for line in said(tmp_path)) == 1
