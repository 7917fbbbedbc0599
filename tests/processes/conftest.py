from __future__ import annotations

from pathlib import Path

import pytest

from tests.processes.test_train import STEPS, finish


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The workdir of a run that nobody disturbed."""
    workdir = tmp_path_factory.mktemp("undisturbed") / "run"
    chief, other = finish(workdir)
    assert f"tfdp: finished at step {STEPS}, published as {workdir}/model/1" in chief
    assert other == ""
    return workdir
