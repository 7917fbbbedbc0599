"""Runs that stand still once, in every way and on each worker: ``python -m tests.processes.hangs``.

Each has to end with one line that says who was where, to start again under the launcher, and to end
with the weights of an undisturbed run, bit for bit. A run of which a worker is only slow goes on.
"""

from __future__ import annotations

import os
import re
import sys
import tempfile
import time
from pathlib import Path

from tests.processes.test_train import command, csv_of, finish, summary
from tests.processes.workers import Workers
from tests.running import run

RECIPE = Path(__file__).parent / "recipes" / "hanging.py"
KINDS = ("input", "callback", "step", "lock")
STEP = r"no step for \d+ s, at step \d+: "
SILENT = "says nothing: its process is stopped, or a library holds Python's lock"
HELD = r"no step for \d+ s: a library holds Python's lock on worker 0; its stacks are in \S+0\.log"
# Where the worker is that stands still; the other one is in the all-reduce then.
PLACES = {
    "input": r"in input \(hang at hanging\.py:\d+\)",
    "callback": r"in a callback \(HangingCallback\.on_train_batch_end, hang at hanging\.py:\d+\)",
    "step": r"in a step \(hang at hanging\.py:\d+\)",
    "lock": SILENT,
}


def expected_line(kind: str, victim: int) -> str:
    """The pattern of what the chief says."""
    if kind == "lock" and victim == 0:
        return f"tfdp: {HELD}\n"
    places = {1 - victim: "in the all-reduce", victim: PLACES[kind]}
    return f"tfdp: {STEP}worker 0 {places[0]}, worker 1 {places[1]}\n"


def environment(kind: str, victim: int, folder: Path) -> dict[str, str]:
    return {"HANG": f"{kind}:{victim}:{folder / 'once'}", **csv_of(folder / "run")}


def arguments(folder: Path) -> list[str]:
    return command(folder / "run", f"--recipe={RECIPE}", "--export_dir=none")


def check_stacks(folder: Path, victim: int, kind: str) -> None:
    """Checks that the worker that stood still has left its stacks, and the other one as well."""
    log, other_log = (
        (folder / "run" / "logs" / f"worker-{index}.log").read_text()
        for index in (victim, 1 - victim)
    )
    assert "most recent call first" in log
    # If the chief can't tell it why the run ends, TensorFlow may be the first to do so.
    assert "most recent call first" in other_log or (kind, victim) == ("lock", 0)
    assert re.search(r'hanging\.py", line \d+ in hang\n', log), log


def end(kind: str, victim: int, folder: Path) -> list[str]:
    """Runs two workers, of which one stands still, to their ends; returns what they print."""
    codes = [138, 138]
    env = environment(kind, victim, folder)
    with Workers([arguments(folder)] * 2, env=env, limit_s=90) as workers:
        outputs = workers.wait(*codes)
    check_stacks(folder, victim, kind)
    return outputs


def finish_once_restarted(kind: str, victim: int, folder: Path) -> tuple[str, str]:
    """Runs two workers under the launcher to the end; returns its output, and the weights."""
    launch = ["python", "-m", "cluster.launch", "--workers=2", "--max_restarts=1", "--no-spares"]
    env = environment(kind, victim, folder)
    output = run([*launch, "--", *arguments(folder)], env=env, limit_s=180)
    if kind != "slow":
        check_stacks(folder, victim, kind)
    return output, summary(folder / "run")["weights_sha256"]


def main() -> int:
    """Runs all of them, and prints a table; returns 0 if all are as they have to be."""
    wrong = 0
    with tempfile.TemporaryDirectory(prefix="tfdp-hangs-") as name:
        finish(Path(name) / "undisturbed")
        expected = summary(Path(name) / "undisturbed")["weights_sha256"]
        for kind in (*KINDS, "slow"):
            for victim in (0, 1):
                folder = Path(name) / f"{kind}-{victim}"
                folder.mkdir()
                began_s = time.monotonic()
                output, weights = finish_once_restarted(kind, victim, folder)
                took_s = time.monotonic() - began_s
                is_right = weights == expected and (
                    "starting again" not in output
                    if kind == "slow"
                    else re.search(expected_line(kind, victim), output) is not None
                )
                wrong += not is_right
                said = next((line for line in output.splitlines() if "no step" in line), "nothing")
                print(f"{'right' if is_right else 'WRONG'} {took_s:5.0f} s  {said}", flush=True)
    return 1 if wrong else 0


if __name__ == "__main__":
    os.chdir(Path(__file__).resolve().parents[2])
    sys.exit(main())
