"""What takes longer than the tests of ``make test`` may: ``make kubernetes``."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from tests.processes.indexed_job import indexed_job
from tests.processes.test_elastic import ENV, FLAGS, assert_same_weights, newest_step
from tests.processes.test_train import (
    STEPS,
    assert_only_own_words,
    command,
    csv_of,
    summary,
    wait_for_checkpoint,
)
from tests.running import run, wait_until

# Meets the other worker as tfdp.connect does, and ends before TensorFlow starts.
LEAVES_AT_ONCE = """
from cluster.meeting import rendezvous
from cluster.meeting.group import find_group
rendezvous.meet(find_group("kubernetes"), 60, print)
"""


@pytest.mark.timeout(600)
def test_a_run_survives_whatever_happens_to_its_pods(undisturbed: Path, tmp_path: Path) -> None:
    workdir = tmp_path / "run"
    with indexed_job(command(workdir), 2, tmp_path, {"PACE_S": "0.2", **csv_of(workdir)}) as job:
        addresses = [job.start(0).address, job.start(1).address]
        job.publish(0)

        # A drained node: the pod saves and comes back, long after the chief.
        wait_for_checkpoint(workdir, 8)
        job.pods[1].signal(signal.SIGTERM)
        outputs = job.wait(138, 143)
        assert "worker 1 got a signal to stop" in outputs[0]
        addresses.append(job.start(0).address)
        job.publish(0)
        job.pods[0].process.wait_for("waiting for worker 1, for at most 600 s")
        addresses.append(job.start(1).address)

        # A grace period that is too short. Then the chief is the last to come, and its name has
        # its former address for a while.
        wait_for_checkpoint(workdir, 16)
        job.pods[0].signal(signal.SIGTERM)
        job.pods[0].signal(signal.SIGKILL)
        job.wait(None, 138)
        addresses.append(job.start(1).address)
        job.pods[1].process.wait_for("waiting for worker 0")
        addresses.append(job.start(0).address)
        job.publish(0)

        # A node that is lost: no process ends, no connection is closed.
        wait_for_checkpoint(workdir, 28)
        job.disconnect(1)
        for output in job.wait(138, 138):
            assert " was lost: " in output
        addresses += [job.start(1).address, job.start(0).address]
        job.publish(0)
        outputs = job.wait(0, 0)
    assert_only_own_words(*outputs)
    assert len(set(addresses)) == len(addresses) == 8
    assert summary(workdir)["weights_sha256"] == summary(undisturbed)["weights_sha256"]
    assert summary(workdir)["restarts"] == 3


def test_the_first_process_of_a_pod_ends_if_another_worker_leaves_while_tensorflow_starts(
    tmp_path: Path,
) -> None:
    """TensorFlow waits for the other worker forever, and the pod's first process gets no signal."""
    with indexed_job(command(tmp_path / "run"), 2, tmp_path) as job:
        job.start(0)
        job.publish(0)
        job.start(1, ["python", "-c", LEAVES_AT_ONCE])
        job.wait(138, 0)


@pytest.mark.timeout(600)
def test_of_two_parts_of_a_cut_network_one_trains(tmp_path: Path) -> None:
    """The chief loses its network, and comes back without it: the others go on, it does not."""
    run(["python", *command(tmp_path / "alone", *FLAGS)[1:]], env=ENV)
    workdir = tmp_path / "run"
    flags = (*FLAGS, "--min_workers=2", "--elastic_wait_s=4")
    with indexed_job(command(workdir, *flags), 3, tmp_path, {"PACE_S": "0.4", **ENV}) as job:
        for index in range(3):
            job.start(index)
        job.publish(0)
        wait_until(lambda: newest_step(workdir) >= 4, 90, "all three have saved")
        job.disconnect(0)
        job.wait(138, 138, 138)
        before = newest_step(workdir)
        job.start(0)
        job.disconnect(0)
        job.start(1)
        job.start(2)
        wait_until(lambda: newest_step(workdir) > before + 4, 120, "two of them go on")
        cut_off = job.pods[0].process
        cut_off.wait_for("other workers train without this one")
        assert "tfdp: step" not in cut_off.output
        job.connect(0)
        outputs = job.wait(0, 0, 0)
    assert "training with 2 of 3 workers, without worker 0" in outputs[1]
    assert "is saved: starting again with worker 0" in outputs[1]
    assert (summary(workdir)["workers"], summary(workdir)["steps"]) == (3, STEPS)
    assert_same_weights(workdir, tmp_path / "alone")
