"""``python -m tfdp.train`` on TFRecord files."""

from __future__ import annotations

import json
from pathlib import Path

from cluster import exit_codes
from tests.running import ROOT, run
from tests.tfdp.records import damage, offset, write

RECIPE = ROOT / "tests" / "processes" / "recipes" / "records.py"


def train(folder: Path, name: str, expect: int) -> str:
    command = [
        *("python", "-m", "tfdp.train", f"--recipe={RECIPE}", f"--workdir={folder / name}"),
        *("--epochs=2", "--global_batch_size=5", "--tensorboard=false"),
        *(f"--hparam=pattern={folder}/*.tfrecord", f"--hparam=log={folder / name}.log"),
    ]
    return run(command, expect, limit_s=90)


def test_runs_of_records_are_shuffled_and_a_damaged_one_ends_the_run(tmp_path: Path) -> None:
    first, _ = write(tmp_path, (12, 8))
    train(tmp_path, "good", exit_codes.FINISHED)
    summary = json.loads((tmp_path / "good" / "summary.json").read_text())
    assert summary["examples"] == 40
    batches = [json.loads(line) for line in (tmp_path / "good.log").read_text().splitlines()]
    trained = [batch for batch in batches if len(batch) == 5]  # the others are probes of publishing
    assert len(trained) >= 8
    assert {tuple(batch) for batch in trained} == {
        tuple(range(first, first + 5)) for first in (0, 5, 10, 15)
    }

    damage(first, offset(7) + 12)
    output = train(tmp_path, "damaged", exit_codes.FAILED)
    assert f"tfdp: {first}, byte {offset(7)}: the record can't be read" in output
