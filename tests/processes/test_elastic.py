"""Runs that go on while workers are away, and take them in when they come back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from tests.processes.pods import Pods
from tests.processes.test_train import STEPS, checkpoints, command, summary
from tests.processes.workers import Workers, places
from tests.running import Process

FLAGS = ("--hparam=dropout=0.0", "--export_dir=none", "--eval_every_steps=0")
ENV = {"CALLBACKS": "none"}


def newest_step(workdir: Path) -> int:
    """The step of the newest checkpoint; 0 if there is none."""
    return max((int(path.name) for path in workdir.glob("checkpoints/[0-9]*")), default=0)


def assert_same_weights(workdir: Path, expected: Path) -> None:
    """Compares all weights and optimizer states of two finished runs."""
    ours, theirs = (
        safetensors.numpy.load_file(each / "checkpoints" / str(STEPS) / "state.safetensors")
        for each in (workdir, expected)
    )
    compared = [name for name in ours if name.startswith(("model/", "optimizer/"))]
    assert len(compared) >= 8
    for name in compared:
        np.testing.assert_allclose(ours[name], theirs[name], rtol=2e-5, atol=2e-6, err_msg=name)


@pytest.mark.timeout(480)
def test_a_run_goes_on_without_its_chief_and_takes_it_in_again(tmp_path: Path) -> None:
    workdir = tmp_path / "run"
    flags = (*FLAGS, "--min_workers=2", "--elastic_wait_s=15")
    # The run is slow until worker 0 is taken in, so that it comes before the end on any machine.
    fast = tmp_path / "fast"
    environments = [{**ENV, **each, "PACE_S": "1.5", "FAST": str(fast)} for each in places(3)]
    with (
        Process(command(tmp_path / "alone", *FLAGS), env=ENV) as alone,
        Pods(command(workdir, *flags), environments, limit_s=240) as pods,
    ):
        pods.start(0, 1, 2)
        pods.wait_until(lambda: newest_step(workdir) >= 4, "all three have saved")
        pods.take_away(0)
        before = newest_step(workdir)
        pods.wait_until(lambda: newest_step(workdir) > before, "two go on without the chief")
        assert "training with 2 of 3 workers, without worker 0 (on 127.0.0.1)" in pods.output(1)
        pods.start(0)
        taken_in = "is saved: starting again with worker 0"
        pods.wait_until(lambda: taken_in in pods.output(1), "the chief is taken in", 120)
        fast.touch()
        pods.wait()
        alone.wait()
        assert pods.codes[0] == [-9, 0]
        assert pods.codes[1] == pods.codes[2] == [138, 0], "taken in without an end of the others"
        # The others may have ended to take it in before it looks for them.
        waited = ("which waits until they take it in", "waiting for worker 1, worker 2 (")
        assert any(text in pods.output(0) for text in waited)
    results = summary(workdir)
    assert (results["workers"], results["steps"]) == (3, STEPS)
    assert_same_weights(workdir, tmp_path / "alone")


def test_a_workdir_that_is_not_shared_is_refused(tmp_path: Path) -> None:
    """Each worker has one of its own: another chief would start from nothing."""
    commands = [command(tmp_path / name, *FLAGS, "--min_workers=1") for name in ("a", "b")]
    with Workers(commands) as workers:
        for output in workers.wait(2, 2):
            assert "needs a --workdir that all workers share, and worker 1 does not see" in output
    assert checkpoints(tmp_path / "a") == checkpoints(tmp_path / "b") == {}
