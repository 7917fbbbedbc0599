"""``python -m tfdp.train`` on TFRecord files."""

from __future__ import annotations

import json
from pathlib import Path

from cluster import exit_codes
from tests.processes.workers import Workers
from tests.running import ROOT, run
from tests.tfdp.records import damage, offset, write

RECIPE = ROOT / "tests" / "processes" / "recipes" / "records.py"


def command(folder: Path, name: str, *flags: str) -> list[str]:
    return [
        *("python", "-m", "tfdp.train", f"--recipe={RECIPE}", f"--workdir={folder / name}"),
        *("--epochs=2", "--global_batch_size=5", "--tensorboard=false", "--export_dir=none"),
        *(f"--hparam=pattern={folder}/*.tfrecord", f"--hparam=log={folder / name}.log", *flags),
    ]


def test_runs_of_records_are_shuffled_and_a_damaged_one_ends_the_run(tmp_path: Path) -> None:
    first, _ = write(tmp_path, (12, 8))
    run(command(tmp_path, "good"), exit_codes.FINISHED)
    summary = json.loads((tmp_path / "good" / "summary.json").read_text())
    assert summary["examples"] == 40
    batches = [json.loads(line) for line in (tmp_path / "good.log").read_text().splitlines()]
    assert len(batches) >= 8
    assert {tuple(batch) for batch in batches} == {
        tuple(range(first, first + 5)) for first in (0, 5, 10, 15)
    }

    damage(first, offset(7) + 12)
    output = run(command(tmp_path, "damaged"), exit_codes.FAILED)
    assert f"tfdp: {first}, byte {offset(7)}: the record can't be read" in output


def test_files_that_leave_workers_unequal_records_end_the_run(tmp_path: Path) -> None:
    paths = write(tmp_path, (6, 6, 13))
    flags = ("--auto_shard=file", "--hparam=is_plain=true")
    with Workers([command(tmp_path, "unequal", *flags)] * 2) as workers:
        for output in workers.wait(exit_codes.BAD_INPUT, exit_codes.BAD_INPUT):
            assert "[19, 6] records" in output
            assert f"{paths[2]} (13)" in output
            assert "use --auto_shard=data" in output
            assert "Traceback" not in output
