from __future__ import annotations

import subprocess
import sys
from pathlib import Path

CODE = """
import pathlib, sys
from tfdp.log import open_log, say
from tfdp.workers.faults import end_process
open_log(pathlib.Path(sys.argv[1]), 0)
input()
say("lost")
say("lost")
print("went on")
end_process(0)
"""


def test_nobody_has_to_read_what_is_said(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", CODE, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    with process:
        assert process.stderr is not None
        process.stderr.close()
        out, _ = process.communicate(b"\n", timeout=60)
    assert out == b"went on\n"
    assert process.returncode == 0
    assert (tmp_path / "worker-0.log").read_text().count("lost") == 2
