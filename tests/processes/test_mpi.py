"""A run that a launcher of MPI starts: Open MPI, MPICH or Intel MPI, whichever is installed."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.processes.test_train import command, csv_of, summary
from tests.running import run

# Open MPI refuses to be started by root without them.
AS_ROOT = {
    f"{prefix}_ALLOW_RUN_AS_ROOT{suffix}": "1"
    for prefix in ("OMPI", "PRTE")
    for suffix in ("", "_CONFIRM")
}


@pytest.mark.skipif(shutil.which("mpiexec") is None, reason="mpiexec is not installed")
def test_ranks_of_one_node_are_workers(undisturbed: Path, tmp_path: Path) -> None:
    workdir = tmp_path / "run"
    output = run(
        ["mpiexec", "-n", "2", *command(workdir)], env={**AS_ROOT, **csv_of(workdir)}, limit_s=200
    )
    assert "tfdp: worker 0 of 2 by " in output
    assert summary(workdir)["workers"] == 2
    assert summary(workdir)["weights_sha256"] == summary(undisturbed)["weights_sha256"]
