"""A stand-in for the run of a trial, in milliseconds: its results are a formula.

``stand_in.py FOLDER TOTAL_STEPS TO_STEP PARAMS``: TO_STEP is 0 for the whole trial. The parameter
``act`` says how it ends: well, or by an exit code, a signal, a NaN, never. An act that begins with
``once`` takes place at the first start only.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sys
import time
from pathlib import Path


def value(params: dict[str, object], steps: int) -> float:
    """The objective: better with more steps, and with x near 0.3."""
    x = params["x"]
    assert isinstance(x, float)
    return 1.0 - (x - 0.3) ** 2 - 1.0 / (steps + 1)


def main(folder: Path, total: int, to_step: int, params: dict[str, object]) -> int:
    act = str(params.get("act", ""))
    starts = folder / "starts"
    count = len(starts.read_text()) if starts.exists() else 0
    starts.write_text("s" * (count + 1))
    act = ("" if count else act.removeprefix("once ")) if act.startswith("once ") else act
    print("tfdp: a line for people", flush=True)
    if "full disk" in act:
        print("tfdp: a file could not be written: No space left on device", flush=True)
    if "path" in act:
        print(f"tfdp: see {folder}/logs", flush=True)
    if act.startswith("exit"):
        return int(act.split()[1])
    if act.startswith("kill"):
        os.kill(os.getpid(), signal.SIGKILL)
    if act == "sleep":
        time.sleep(100)
    if act.startswith("slow"):
        time.sleep(0.3)
    steps = min(total, int(act.split()[1])) if act.startswith("stops") else total
    is_pause = 0 < to_step < steps
    steps = to_step if is_pause else steps
    results = {
        "steps": steps,
        "examples": 8 * steps,
        "metrics": {},
        "eval_metrics": {"score": float("nan") if act == "nan" else value(params, steps)},
        "weights_sha256": hashlib.sha256(f"{params} {steps}".encode()).hexdigest(),
    }
    path = folder / (f"pauses/{steps}.json" if is_pause else "summary.json")
    path.parent.mkdir(exist_ok=True)
    part = path.with_suffix(".part")  # it may be killed here
    part.write_text(json.dumps(results))
    part.rename(path)
    return 0


if __name__ == "__main__":
    arguments = sys.argv[1:]
    sys.exit(
        main(Path(arguments[0]), int(arguments[1]), int(arguments[2]), json.loads(arguments[3]))
    )
