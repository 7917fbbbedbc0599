"""Workers that a user's own ClusterResolver names: one of them is the chief."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tests.running import Process, free_port
from tests.tfdp.servables import loaded

SCRIPT = Path(__file__).with_name("own_resolver.py")


def test_one_worker_is_the_chief_without_tf_config(tmp_path: Path) -> None:
    ports = [str(free_port()) for _ in range(2)]
    commands = [["python", str(SCRIPT), str(tmp_path), str(index), *ports] for index in range(2)]
    with Process(commands[0]) as first, Process(commands[1]) as second:
        outputs = [first.wait(), second.wait()]
    for output, is_chief in zip(outputs, (True, False), strict=True):
        assert "alone True\n" in output
        assert f"outside {is_chief}\n" in output
        assert f"inside {is_chief}\n" in output
        assert "refused a ClusterResolver names 2 workers, but the model was built outs" in output
        assert output.count("tfdp: once for all") == is_chief
        assert output.count("2/2 - ") == is_chief
    with loaded(tmp_path / "1") as servable:
        first, second = (servable.ask(features=np.ones((2, 3)))["outputs"] for _ in range(2))
    assert (first != second).all()
    assert [path.name for path in tmp_path.iterdir()] == ["1"]
