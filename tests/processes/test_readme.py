"""What the README shows works as it stands there."""

from __future__ import annotations

import json
import re
from pathlib import Path

from tests.running import ROOT, run

README = (ROOT / "README.md").read_text()


def test_the_recipe_in_the_readme_trains_and_is_published(tmp_path: Path) -> None:
    block = re.search(r"`mine\.py`:\n\n```python\n(.*?)```", README, re.DOTALL)
    assert block is not None
    code = block[1]
    assert len(code.strip().splitlines()) <= 20, "it says 20 lines"
    (tmp_path / "mine.py").write_text(code)
    command = ["python", "-m", "cluster.launch", "--workers=2", "--"]
    command += ["python", "-m", "tfdp.train", "--recipe=mine.py", "--workdir=runs/mine"]
    run([*command, "--steps=20"], cwd=tmp_path)
    summary = json.loads((tmp_path / "runs/mine/summary.json").read_text())
    assert summary["workers"] == 2
    assert (tmp_path / summary["export_path"] / "saved_model.pb").exists()
    predict = re.search(r"^python (-m tfdp\.predict .*)$", README, re.MULTILINE)
    assert predict is not None
    run(["python", *predict[1].split()], cwd=tmp_path)
    about = json.loads((tmp_path / "runs/rows/predictions.json").read_text())
    assert (about["rows"], about["step"]) == (20_000, 20)


def test_every_flag_in_the_docs_is_one() -> None:
    described = set(re.findall(r"^\| `--(\w+)`", (ROOT / "docs/training.md").read_text(), re.M))
    described |= {"epochs"}
    printed = run(["python", "-m", "tfdp.train", "--help"])
    flags = set(re.findall(r"^\s+--(?:\[no\])?(\w+):", printed, re.M))
    assert flags - {"flagfile", "undefok"} == described  # those two are absl's
