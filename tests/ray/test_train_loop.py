"""examples/ray/train_loop.py: Ray Train on two nodes, whose workers are killed."""

from __future__ import annotations

import json
import os
import re
import signal
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from tests.running import ROOT, Process, wait_until

EXAMPLE = ROOT / "examples" / "ray" / "train_loop.py"


def train(cluster: Any, storage: Path, name: str, epochs: int) -> Process:
    flags = (f"--storage_path={storage}", f"--name={name}", f"--epochs={epochs}")
    env = {"RAY_ADDRESS": cluster.address, "RAY_DEDUP_LOGS": "0"}
    return Process(["python", str(EXAMPLE), *flags], env=env, limit_s=240)


def latest(run: Path) -> dict[str, Any]:
    """What Ray knows of the latest checkpoint of a run; empty if it knows none."""
    try:
        snapshot = json.loads((run / "checkpoint_manager_snapshot.json").read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return {}
    return snapshot["latest_checkpoint_result"] or {}


def state(run: Path) -> dict[str, np.ndarray]:
    """Weights and the optimizer's state in the latest checkpoint of a run."""
    found = {}

    def add(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset):
            found[name] = item[()]

    path = run / latest(run)["checkpoint_dir_name"] / "latest.weights.h5"
    with h5py.File(path) as file:
        file.visititems(add)
    return found


def reported_epochs(driver: Process) -> list[int]:
    return [int(epoch) for epoch in re.findall(r"'epoch': (\d+),.* from rank 0", driver.output)]


@pytest.mark.timeout(600)
def test_a_run_whose_workers_are_killed_ends_with_the_weights_of_an_undisturbed_one(
    cluster: Any, tmp_path: Path
) -> None:
    with train(cluster, tmp_path, "undisturbed", epochs=7) as driver:
        output = driver.wait()
        assert "finished: {'epoch': 7" in output
        assert reported_epochs(driver) == [1, 2, 3, 4, 5, 6, 7]
        assert "Collective all_reduce tensors" not in output, "TensorFlow's messages are left out"
    expected = state(tmp_path / "undisturbed")
    assert expected["optimizer/vars/0"] == 7 * -(-20_000 // 64), "updates"

    run = tmp_path / "killed"
    with train(cluster, tmp_path, "killed", epochs=5) as driver:
        for rank, epoch in ((1, 2), (0, 4)):
            wait_until(
                lambda epoch=epoch: latest(run).get("metrics", {}).get("epoch", 0) >= epoch,
                120,
                f"Ray knows the checkpoint of epoch {epoch}",
            )
            pids = re.findall(rf"pid=(\d+)\) world_rank={rank},", driver.output)
            os.kill(int(pids[-1]), signal.SIGKILL)
            driver.wait_for(rf"tfdp: worker {rank} \(.*\) was lost: its process has ended")
        output = driver.wait()
        assert output.count("Started training worker group of size 2") == 3
        epochs = reported_epochs(driver)
        assert epochs.count(1) == 1, "no start was from the beginning"
        assert sorted(set(epochs)) == [1, 2, 3, 4, 5]
    with train(cluster, tmp_path, "killed", epochs=7) as driver:  # the same name: it goes on
        driver.wait()
        assert reported_epochs(driver) == [6, 7]
    found = state(run)
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)
