"""Real runs whose workdir lets them down: a full disk, and another process that took it over."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path

from tests.processes.test_train import (
    Hold,
    checkpoints,
    command,
    summary,
    versions,
    wait_for_checkpoint,
)
from tests.processes.workers import Workers
from tests.running import Process, run


def test_a_full_disk_ends_all_and_leaves_what_was_saved_before(tmp_path: Path) -> None:
    """The limit on a file's size stands for the disk's: a write fails half way."""
    large = ("--hparam=units=2000", "--export_dir=none")  # a state of 400 kB
    limited = ["bash", "-c", 'ulimit -f 200; exec "$@"', "-"]
    run(command(tmp_path, *large, "--steps=4"))
    before = checkpoints(tmp_path)
    with Workers([[*limited, *command(tmp_path, *large)]] * 2) as workers:
        chief, other = workers.wait(1, 1)
    said = f"checkpoint {tmp_path}/checkpoints/8 could not be written: File too large"
    assert said in chief and "start the same command again" in chief
    assert "Traceback" not in chief
    assert "worker 0 failed" in other and said in other
    assert checkpoints(tmp_path) == before
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["4"]
    assert summary(tmp_path)["steps"] == 4


def test_a_chief_that_was_frozen_and_replaced_writes_nothing(tmp_path: Path) -> None:
    """As over a shared file system, whose locks another machine does not see."""

    def files() -> dict[str, int]:
        return {
            str(path): path.stat().st_mtime_ns
            for path in workdir.rglob("*")
            if not {"logs", "tensorboard"} & set(path.relative_to(workdir).parts)
        }

    workdir, hold = tmp_path / "run", Hold(tmp_path)
    with Process(command(workdir), env=hold.env) as frozen:
        wait_for_checkpoint(workdir, 8)
        frozen.signal(signal.SIGSTOP)
        (workdir / ".lock").unlink()
        run(command(workdir))
        assert versions(workdir) == ["1"]
        shutil.rmtree(workdir / "checkpoints" / "12")  # where the frozen one comes next
        left = files()
        hold.end()
        frozen.signal(signal.SIGCONT)
        output = frozen.wait(1)
    assert f"another process goes on with the run in {workdir}" in output
    assert files() == left
