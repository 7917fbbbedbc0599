"""How a worker's process ends."""

from __future__ import annotations

from pathlib import Path

from tests.running import run

STOPPED_WHILE_REGROUPING = """
import os, signal, sys, time
from pathlib import Path
from tfdp.cli.process import run_to_exit_code
from tfdp.cli.signals import Signals
from tfdp.errors import Regrouping
from tfdp.workers.faults import end_process

def work():
    with signals.deferred():
        os.kill(os.getpid(), signal.SIGTERM)
        while signals.received is None:
            time.sleep(0.01)
        raise Regrouping(step=8, newcomers=["worker 0"])

assert not Path(sys.argv[1]).exists(), "started again"
Path(sys.argv[1]).touch()
signals = Signals()
end_process(run_to_exit_code(work, signals, Path("unused")))
"""


def test_a_signal_ends_a_worker_that_was_about_to_start_again(tmp_path: Path) -> None:
    """It came while the others were saving for the newcomer."""
    output = run(["python", "-c", STOPPED_WHILE_REGROUPING, str(tmp_path / "started")], 143)
    assert "got SIGTERM: saving, then stopping" in output
    assert "step 8 is saved" in output
