"""Messages for people, and the log file, ``WORKDIR/logs/worker-<i>.log``.

TensorFlow's C++ code writes to file descriptor 2 directly. So that descriptor becomes the log file,
and Python's ``sys.stderr`` keeps the terminal under another descriptor.
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
from typing import Final, TextIO

PREFIX: Final = "tfdp: "  # of each line for people

_file: TextIO | None = None
_path: Path | None = None
_captured = b""  # output from before ``open_log``
_said: set[str] = set()


@contextlib.contextmanager
def captured() -> Iterator[None]:
    """Inside the block, output to file descriptor 2 is captured, and ``open_log`` writes it later.

    For an import of TensorFlow that precedes ``open_log``.
    """
    global _captured
    _make_tensorflow_verbose()
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
        _captured += file.read()


def open_log(folder: Path, worker: int) -> Path:
    """Redirects TensorFlow's output, warnings and log records to ``folder/worker-<worker>.log``.

    Call it once, before TensorFlow is imported. It appends, so one file has all starts of a run.

    Returns:
        The file's path.
    """
    global _file, _path
    folder.mkdir(parents=True, exist_ok=True)
    _path = path = folder / f"worker-{worker}.log"
    _make_tensorflow_verbose()
    sys.stderr.flush()
    terminal = os.fdopen(os.dup(2), "w", buffering=1, errors="backslashreplace")
    log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(log, 2)
    os.write(log, _captured)
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


def close_log() -> None:
    """Gives file descriptor 2 back to the terminal, for a program that replaces this one."""
    sys.stderr.flush()
    if _file is not None:
        os.dup2(sys.stderr.fileno(), 2)


def _make_tensorflow_verbose() -> None:
    """Prepares for TensorFlow's import: its output goes to a file, so it may be complete."""
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "0"
    # TensorFlow adds a handler that writes to the terminal where it finds none.
    logging.getLogger().addHandler(logging.NullHandler())


def say(message: str) -> None:
    """Prints a message for people, and logs it."""
    logging.getLogger("tfdp").info("%s", message)
    with contextlib.suppress(OSError, ValueError):  # the terminal is gone; the log is not
        print(f"{PREFIX}{message}", file=sys.stderr, flush=True)


def say_on_chief(message: str) -> None:
    """Prints a message that is equal on all workers, on the chief alone."""
    from tfdp.chief import is_chief  # imports TensorFlow, which ``open_log`` has to precede

    if is_chief():
        say(message)


def say_once_on_chief(message: str) -> None:
    """Prints a message as ``say_on_chief`` does, but not a second time in this process."""
    if message not in _said:
        _said.add(message)
        say_on_chief(message)


def write_stacks() -> None:
    """Writes the Python stack of every thread to the log file, if it is open."""
    if _file is not None:
        faulthandler.dump_traceback(_file)


def path() -> Path | None:
    """Returns the path of the log file; None if it is not open."""
    return _path


def descriptors() -> tuple[int, int | None]:
    """Returns the descriptors of the terminal and of the log file, for another process.

    The latter is None if there is no log file.
    """
    try:
        terminal = sys.stderr.fileno()
    except (AttributeError, OSError):  # a notebook's
        terminal = 2
    return terminal, None if _file is None else _file.fileno()
