"""What ``SlurmRunner`` does after steps; tests/processes runs it in a real Slurm cluster."""

from __future__ import annotations

import signal
from collections.abc import Mapping

import pytest

from cluster import policy
from cluster.launching.signals import Signals
from cluster.slurm.job import Job
from cluster.slurm.runner import SlurmRunner
from cluster.slurm.step import StepEnd


class FakeJob(Job):
    """A job on nodes that Slurm may take away."""

    def __init__(self, nodes: frozenset[str] | None) -> None:
        super().__init__({"SLURM_JOB_ID": "1"})
        self._nodes = nodes

    def nodes(self) -> frozenset[str] | None:
        return self._nodes

    def is_running(self, timeout_s: float = 0.0) -> bool | None:
        return True


def end_of_step(tasks_on: Mapping[str, int]) -> StepEnd:
    """A step whose tasks were all killed, and have all said so."""
    killed = [policy.Exit(f"worker on {node}", -signal.SIGKILL) for node in tasks_on]
    return StepEnd(killed, None, tasks_on, True, frozenset(), False)


@pytest.mark.parametrize(
    ("in_job", "min_workers", "does_start_again", "said"),
    [
        ({"n1", "n2"}, 2, True, "going on without n3 (--min_workers)"),
        ({"n1", "n2"}, None, False, "nothing can be started on n3 any more"),
        ({"n1", "n2", "n3"}, 2, True, "starting again"),
        (None, 2, True, "starting again"),
    ],
)
def test_a_node_that_slurm_took_away_is_missed_though_its_task_said_that_it_ended(
    in_job: set[str] | None,
    min_workers: int | None,
    does_start_again: bool,
    said: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    end = end_of_step({"n1": 1, "n2": 1, "n3": 1})
    with Signals() as signals:
        runner = SlurmRunner(
            ["true"],
            job=FakeJob(None if in_job is None else frozenset(in_job)),
            srun_flags=(),
            max_restarts=3,
            min_workers=min_workers,
            signals=signals,
        )
    runner._tasks_on = end.tasks_on
    decision = runner._decide(end, None)
    assert (decision.exit_code is None) == does_start_again
    assert said in capsys.readouterr().err + decision.reason
