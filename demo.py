"""``make demo``: train on two workers, publish, serve, predict.

It uses tfdp as any user does: commands (launcher, server, rollout), the client library and the
files between them. An argument sets another folder than ``runs/demo``. The folder is cleared first.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from serving.client import Client
from tfdp.recipes.scans import scans

ROOT = Path(__file__).resolve().parent
WORKDIR = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/demo")
LEAST_ACCURACY = 0.97
STOP_TIMEOUT_S = 40.0  # more than the launcher's timeout for its workers
READY_TIMEOUT_S = 60.0
_PR_SET_PDEATHSIG = 1  # <linux/prctl.h>
_LIBC = ctypes.CDLL(None)


def main() -> None:
    """Runs the demo; raises SystemExit with a message if a step fails."""
    began_s = time.monotonic()
    clear(ROOT / WORKDIR)
    images, labels = scans(held_out=True)

    tell(f"training on two workers, in {WORKDIR}")
    summary = train()
    tell(f"{summary['steps']} steps done, published as {summary['export_path']}")

    tell("serving it, and predicting images that it was not trained on")
    with server() as target, Client(target) as client:
        client.wait_until_ready("digits")
        logits = client.predict("digits", {"features": images})["outputs"]
    answers = logits.argmax(axis=1)
    show(images, labels, answers)

    served = float(np.mean(answers == labels))
    evaluated = summary["eval_metrics"]["accuracy"]
    right = np.sum(answers == labels)
    print(f"accuracy of the served answers  {served:.4f}  ({right} of {len(labels)})")
    print(f"accuracy in summary.json        {evaluated:.4f}")
    if not np.isclose(served, evaluated, rtol=0, atol=1e-6):
        raise SystemExit("demo: the served model answers differently from the trained one")
    if served < LEAST_ACCURACY:
        raise SystemExit(f"demo: the accuracy is below {LEAST_ACCURACY}")
    promote(Path(summary["export_path"]).name)
    tell(f"done in {time.monotonic() - began_s:.0f} s; everything is in {WORKDIR}")


def clear(workdir: Path) -> None:
    """Removes an earlier run; raises SystemExit if the folder contains anything else."""
    if workdir.exists() and any(workdir.iterdir()) and not (workdir / "checkpoints").exists():
        raise SystemExit(f"demo: {workdir} is not empty and is not a run: it is left unchanged")
    shutil.rmtree(workdir, ignore_errors=True)


def train() -> dict[str, Any]:
    """Trains the digits on two workers and returns the run's summary."""
    command = ["-m", "cluster.launch", "--workers=2", "--"]
    command += [sys.executable, "-m", "tfdp.train", "--recipe=tfdp.recipes.digits"]
    command += [f"--workdir={WORKDIR}", "--epochs=20"]
    with child(command) as launcher:
        code = launcher.wait()
    if code != 0:
        raise SystemExit(f"demo: training ended with {code}; its logs are in {WORKDIR / 'logs'}")
    return json.loads((ROOT / WORKDIR / "summary.json").read_text())  # type: ignore[no-any-return]


def promote(version: str) -> None:
    """Writes ``models.config``, which the servers of docker-compose.yml read at their start."""
    command = ["-m", "serving.rollout", "promote", version, "--model=digits", "--targets="]
    command += [f"--models_config={WORKDIR / 'models.config'}", "--base_path=/models/model"]
    with child(command) as rollout:
        if rollout.wait() != 0:
            raise SystemExit("demo: the rollout failed")


@contextlib.contextmanager
def server() -> Iterator[str]:
    """Serves the published versions during the block; yields the server's address."""
    command = ["-m", "serving.server", "--port=0", "--model_name=digits"]
    command += [f"--model_base_path={ROOT / WORKDIR / 'model'}"]
    with child(command, stdout=subprocess.PIPE) as process:
        alarm = signal.signal(signal.SIGALRM, _too_late)
        signal.alarm(int(READY_TIMEOUT_S))
        assert process.stdout is not None
        line = process.stdout.readline().strip()
        signal.alarm(0)
        signal.signal(signal.SIGALRM, alarm)
        ready = re.search(r"ready on (\S+),", line)
        if ready is None:
            raise SystemExit(f"demo: the server did not start: {line or process.wait()}")
        print(line)
        yield ready[1]


def _too_late(*_: object) -> None:
    raise SystemExit(f"demo: the server was not ready after {READY_TIMEOUT_S:g} s")


def _in_child() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # a pending one ends it, without a traceback
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


@contextlib.contextmanager
def child(arguments: Sequence[str], **options: Any) -> Iterator[subprocess.Popen[str]]:
    """Runs a Python process that ends with the block: by itself, by SIGTERM, or by SIGKILL.

    The child has its own session, so Ctrl-C reaches this process only. The child dies with it.
    """
    # Python loses a Ctrl-C that arrives during a fork; blocked, it arrives right after.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    process = subprocess.Popen(
        [sys.executable, *arguments],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        start_new_session=True,
        preexec_fn=_in_child,
        text=True,
        **options,
    )
    try:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        yield process
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the child is ending already
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        signal.signal(signal.SIGINT, signal.default_int_handler)


def show(images: np.ndarray, labels: np.ndarray, answers: np.ndarray) -> None:
    """Draws four images and their predictions, one of them wrong if possible."""
    wrong = np.flatnonzero(answers != labels)[:1]
    chosen = [*range(4 - len(wrong)), *wrong]
    shades = " .:-=+*#@"
    print()
    for row in range(8):
        drawn = ("".join(2 * shades[pixel // 2] for pixel in images[i][row]) for i in chosen)
        print("  ".join(drawn).rstrip())
    for i in chosen:
        text = f"predicted {answers[i]}, is {labels[i]}"
        print(f"{text:<18}", end="")
    print("\n")


def tell(message: str) -> None:
    """Prints the next step."""
    print(f"demo: {message}", flush=True)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
