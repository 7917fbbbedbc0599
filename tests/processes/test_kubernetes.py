"""A run in processes that look like pods of an Indexed Job; more of it in kubernetes_cases.py."""

from __future__ import annotations

import signal
from pathlib import Path

from tests.processes.indexed_job import indexed_job
from tests.processes.test_train import (
    Hold,
    assert_only_own_words,
    command,
    csv_of,
    summary,
    wait_for_checkpoint,
)
from tests.running import run


def test_a_run_survives_a_chief_that_comes_back_late_and_elsewhere(
    undisturbed: Path, tmp_path: Path
) -> None:
    hold, workdir = Hold(tmp_path), tmp_path / "run"
    with indexed_job(command(workdir), 2, tmp_path, {**hold.env, **csv_of(workdir)}) as job:
        first, other = job.start(0), job.start(1)
        other.process.wait_for(
            r"waiting for worker 0 \(on mine-0\.mine\.default\.svc.*\(its name: "
        )
        job.publish(0)
        wait_for_checkpoint(workdir, 8)
        first.signal(signal.SIGKILL)
        lost = other.process.wait(138)
        assert "tfdp: worker 0 (" in lost and "was lost: its process has ended" in lost
        hold.end()
        job.start(1)  # the chief's name still has the address of the pod that is gone
        assert job.start(0).address != first.address
        job.publish(0)
        outputs = job.wait(0, 0)
    assert_only_own_words(*outputs)
    assert summary(workdir)["weights_sha256"] == summary(undisturbed)["weights_sha256"]
    assert summary(workdir)["restarts"] == 1


def test_a_pod_that_is_not_told_how_many_there_are_asks_for_it(tmp_path: Path) -> None:
    output = run(command(tmp_path / "run"), 2, env={"JOB_COMPLETION_INDEX": "0"})
    assert "but TFDP_WORKERS is not set: set it to the job's spec.completions" in output
    assert not (tmp_path / "run").exists()
