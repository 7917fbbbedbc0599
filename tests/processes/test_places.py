"""Workers that an engine's variables describe: the chief's address, how many, and a rank."""

from __future__ import annotations

from pathlib import Path

from tests.processes.test_train import command
from tests.processes.workers import run_places
from tests.running import run

# A worker whose port another process takes once the workers have met.
ROBBED = """
import sys
from cluster.meeting import ports, rendezvous
from tfdp import train
from tfdp.workers.faults import end_process

meet = rendezvous.meet

def meet_and_be_robbed(*arguments, **options):
    meeting = meet(*arguments, **options)
    global thief
    thief = ports.listen(int(meeting.cluster.address.rpartition(":")[2]))
    return meeting

rendezvous.meet = meet_and_be_robbed
end_process(train.main(sys.argv))
"""


def test_a_port_that_is_taken_meanwhile_can_be_tried_again(tmp_path: Path) -> None:
    robbed = ["python", "-c", ROBBED, *command(tmp_path)[3:]]
    outputs = run_places([command(tmp_path), robbed], -10, 138)
    assert "worker 1 (127.0.0.1:" in outputs[0]
    assert "was lost while TensorFlow started" in outputs[0]
    assert "another process has taken the port of 127.0.0.1:" in outputs[1]


def test_half_a_description_is_an_error_before_anything_starts(tmp_path: Path) -> None:
    env = {"RANK": "3", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    output = run(command(tmp_path), 2, env=env)
    assert "gives the rank 3 of 2 workers: it has to be from 0 to 1" in output
    output = run(command(tmp_path, "--cluster=slurm"), 2, env=env)
    assert "--cluster is slurm, but SLURM_STEP_ID is not set" in output
    assert not (tmp_path / "checkpoints").exists()
