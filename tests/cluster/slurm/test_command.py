"""The flags of ``cluster.slurm``; tests/processes runs it in a real Slurm cluster."""

from __future__ import annotations

import pytest

from cluster.slurm import __main__ as command


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--max_restarts=-1 -- true", "--max_restarts is -1: it has to be 0 or more"),
        ("--min_workers=0 -- true", "--min_workers is 0: it has to be 1 or more"),
        ("--nodes=2 -- true", "unrecognized arguments: --nodes=2"),
        ("true", "there is no -- before the command"),
        ("--max_restarts=2 --", "put it after --"),
        ("-- true", "srun does not exist here"),
    ],
)
def test_wrong_flags_are_named(
    arguments: str,
    message: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "1")
    monkeypatch.setenv("PATH", "")
    with pytest.raises(SystemExit) as exit_:
        command.main(arguments.split())
    assert exit_.value.code == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_in_a_step_of_several_tasks_it_says_who_starts_srun(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "1")
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "4")
    with pytest.raises(SystemExit) as exit_:
        command.main(["--", "true"])
    assert exit_.value.code == 2
    assert "one of 4 tasks of srun: call this without srun" in capsys.readouterr().err


def test_outside_of_a_job_it_says_where_to_call_it(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    with pytest.raises(SystemExit) as exit_:
        command.main(["--", "true"])
    assert exit_.value.code == 2
    assert "in a batch script (sbatch) or in salloc" in capsys.readouterr().err
