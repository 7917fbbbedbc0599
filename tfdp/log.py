"""Where words go: a few to people, all to ``WORKDIR/logs``.

TensorFlow's C++ code writes to file descriptor 2 whatever Python does, so that descriptor becomes
the log file, and Python's ``sys.stderr`` keeps the terminal under another number.
"""

from __future__ import annotations

import faulthandler
import logging
import os
import sys
from pathlib import Path
from typing import TextIO

from cluster.spec import from_environment

_file: TextIO | None = None


def open_log(folder: Path, worker: int) -> Path:
    """Sends TensorFlow's words, warnings and log records to ``folder/worker-<worker>.log``.

    Call it once, before TensorFlow is imported. It appends: all starts of a run are in one file.

    Returns:
        The file's path.
    """
    global _file
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"worker-{worker}.log"
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "0"  # it is a file: let it be complete
    sys.stderr.flush()
    terminal = os.fdopen(os.dup(2), "w", buffering=1, errors="backslashreplace")
    log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(log, 2)
    os.close(log)
    sys.stderr = terminal
    _file = os.fdopen(os.dup(2), "w", errors="backslashreplace")
    handler = logging.StreamHandler(_file)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    root = logging.getLogger()
    root.handlers[:] = [handler]  # before TensorFlow looks, or it adds one to the terminal
    root.setLevel(logging.INFO)
    logging.captureWarnings(True)
    faulthandler.enable(_file)
    return path


def say(message: str) -> None:
    """Tells people, and the log."""
    logging.getLogger("tfdp").info("%s", message)
    print(f"tfdp: {message}", file=sys.stderr, flush=True)


def say_on_chief(message: str) -> None:
    """Tells people what is the same on every worker, once."""
    cluster = from_environment()
    if cluster is None or cluster.is_chief:
        say(message)


def trace() -> None:
    """Writes where every thread is to the log, if there is one."""
    if _file is not None:
        faulthandler.dump_traceback(_file)
