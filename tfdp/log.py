"""Where words go: a few to people, all to ``WORKDIR/logs``.

TensorFlow's C++ code writes to file descriptor 2 whatever Python does, so that descriptor becomes
the log file, and Python's ``sys.stderr`` keeps the terminal under another number.
"""

from __future__ import annotations

import contextlib
import faulthandler
import logging
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from cluster.spec import from_environment

_file: TextIO | None = None
_kept = b""  # of what was said before there was a log


@contextlib.contextmanager
def kept() -> Iterator[None]:
    """While it lasts, what goes to file descriptor 2 is kept for the log, which is opened later.

    For an import of TensorFlow that comes before ``open_log``.
    """
    global _kept
    _speak_up()
    terminal = os.dup(2)
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(terminal, 2)
            os.close(terminal)
        file.seek(0)
        _kept += file.read()


def open_log(folder: Path, worker: int) -> Path:
    """Sends TensorFlow's words, warnings and log records to ``folder/worker-<worker>.log``.

    Call it once, before TensorFlow is imported. It appends: all starts of a run are in one file.

    Returns:
        The file's path.
    """
    global _file
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"worker-{worker}.log"
    _speak_up()
    sys.stderr.flush()
    terminal = os.fdopen(os.dup(2), "w", buffering=1, errors="backslashreplace")
    log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(log, 2)
    os.write(log, _kept)
    os.close(log)
    sys.stderr = terminal
    _file = os.fdopen(os.dup(2), "w", errors="backslashreplace")
    handler = logging.StreamHandler(_file)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.INFO)
    logging.captureWarnings(True)
    faulthandler.enable(_file)
    return path


def _speak_up() -> None:
    """Prepares for TensorFlow's import: its words go to a file, so let them be complete."""
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "0"
    # TensorFlow adds a handler that writes to the terminal where it finds none.
    logging.getLogger().addHandler(logging.NullHandler())


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
