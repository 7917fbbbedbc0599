from __future__ import annotations

import subprocess
import sys


def test_nobody_has_to_read_what_is_said() -> None:
    code = "from tfdp.log import say; input(); say('lost'); say('lost'); print('went on')"
    process = subprocess.Popen(
        [sys.executable, "-c", code],
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
