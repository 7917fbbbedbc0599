"""Real runs that lose their workdir: to a full disk, and to another process."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path

from tests.processes.test_train import (
    Hold,
    command,
    summary_is_missing,
    versions,
    wait_for_checkpoint,
)
from tests.processes.workers import Workers
from tests.running import Process, run


def test_a_full_disk_ends_all_and_leaves_nothing_half_written(tmp_path: Path) -> None:
    """The limit on a file's size stands for the disk's: a write fails half way."""
    large = ("--hparam=units=2000", "--export_dir=none")  # a state of 400 kB
    limited = ["bash", "-c", 'ulimit -f 200; exec "$@"', "-"]
    with Workers([[*limited, *command(tmp_path, *large)]] * 2) as workers:
        chief, other = workers.wait(1, 1)
    message = f"checkpoint {tmp_path}/checkpoints/4 could not be written: File too large"
    assert message in chief and "start the same command again" in chief
    assert "Traceback" not in chief
    assert "worker 0 failed" in other and message in other
    assert list((tmp_path / "checkpoints").iterdir()) == []
    assert summary_is_missing(tmp_path)


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
