"""Training in a real Slurm cluster; ``make slurm`` has more of it."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

from tests.processes.slurm_cluster import Cluster, skip_without_slurm
from tests.processes.test_train import Hold, command, summary, wait_for_checkpoint


def test_a_killed_worker_costs_a_restart_within_the_job(undisturbed: Path, tmp_path: Path) -> None:
    skip_without_slurm()
    hold, workdir = Hold(tmp_path), tmp_path / "run"
    train = shlex.join([sys.executable, *command(workdir)[1:]])
    script = tmp_path / "job.sbatch"
    script.write_text(f"#!/bin/bash\nexec {sys.executable} -m cluster.slurm -- {train}\n")
    with Cluster(nodes=2) as cluster:
        job = cluster.submit(script, "--nodes=2", env=hold.env)
        wait_for_checkpoint(workdir, 8)
        cluster.kill(cluster.pid_of("tfdp.train", "n2"))
        hold.end()
        ended = cluster.wait_for_state(job, "COMPLETED", "FAILED")
        output = Path(f"{script}.out").read_text()
        assert ended["JobState"] == "COMPLETED", output
        assert ended["Restarts"] == "0"
    assert "[slurm] worker 1 (n2) was killed by SIGKILL: starting again, restart 1 of 3" in output
    assert "tfdp: worker 1 (" in output
    assert summary(workdir)["weights_sha256"] == summary(undisturbed)["weights_sha256"]
    assert summary(workdir)["restarts"] == 1
