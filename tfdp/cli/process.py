"""A worker's process, from its command line to its exit code."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import sys
import tempfile
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn, Protocol, TypeVar

from cluster import exit_codes
from tfdp import log
from tfdp.choices import Cluster
from tfdp.cli import first_process, flags
from tfdp.cli.signals import Signals
from tfdp.errors import (
    BadInput,
    Finished,
    PeerFailed,
    PeerMissing,
    Regrouping,
    Stopped,
    TrainingError,
    reason_of,
    shortened,
)
from tfdp.group import given_environment, look_for
from tfdp.importing import import_tensorflow
from tfdp.log import say, say_on_chief
from tfdp.workers.faults import FAULTS, code_of, in_one_line


class _OfWorker(Protocol):
    @property
    def cluster(self) -> Cluster: ...


Settings = TypeVar("Settings", bound=_OfWorker)

# Errors that ended the work, kept until the process ends. Their frames hold iterators over data,
# and destroying an iterator waits for its reads, which may be stuck for good.
_KEPT: list[BaseException] = []


def run_on_checkpoint(
    kind: type[Settings],
    argv: Sequence[str],
    about: str,
    name: str,
    work: Callable[[Settings], None],
) -> int:
    """Runs a command that reads a run's checkpoint and does not change the run's state.

    Args:
        kind: dataclass of the settings.
        argv: the command line.
        about: first lines of ``--help``.
        name: name of the command, for its log.
        work: imports TensorFlow and does the work.

    Returns:
        The exit code.
    """
    if flags.print_help(kind, argv, about):
        return exit_codes.FINISHED
    first_process.go_on_in_a_child()
    signals = Signals()  # before any import, NumPy included, starts a thread
    try:
        settings = flags.parse(kind, argv)
        group = look_for(settings.cluster)
    except BadInput as error:
        return report(error, exit_codes.BAD_INPUT)
    logs = Path(tempfile.mkdtemp(prefix=f"tfdp-{name}-"))
    log_path = log.open_log(logs, 0 if group is None else group.rank)
    code = run_to_exit_code(lambda: work(settings), signals, log_path)
    if code in (exit_codes.FINISHED, exit_codes.BAD_INPUT):  # otherwise the log may explain more
        shutil.rmtree(logs, ignore_errors=True)
    return code


def run_to_exit_code(work: Callable[[], None], signals: Signals, log_path: Path) -> int:
    """Runs a worker's work; if an error ends it, prints it and reports it to the other workers.

    Args:
        work: does the work; TensorFlow is imported then.
        signals: the signals of this process.
        log_path: the file that gets errors in full.

    Returns:
        The exit code.
    """
    FAULTS.end_process_on_error()
    try:
        import_tensorflow()
        work()
    except (Exception, SystemExit) as error:
        _KEPT.append(error)
        if isinstance(error, SystemExit):
            error = TrainingError(
                f"the recipe ended the process: sys.exit({shortened(error.code)})"
            )
        return _exit_code_of(error, signals, log_path)
    finally:
        FAULTS.leave()
    return exit_codes.FINISHED


def report(error: BaseException, code: int) -> int:
    """Prints an error for people; returns ``code``."""
    say(f"{error}" if isinstance(error, TrainingError) else f"{error!r}")
    return code


def _exit_code_of(error: Exception, signals: Signals, log_path: Path) -> int:
    if isinstance(error, Stopped):
        say(f"{error}; its state is saved, and the same command goes on from there")
        return exit_codes.TRY_AGAIN if signals.received is None else 128 + signals.received
    if isinstance(error, Finished):
        return report(error, exit_codes.FINISHED)
    if isinstance(error, Regrouping):
        if signals.received is not None:
            say(f"step {error.step} is saved: ending by the signal")
            return 128 + signals.received
        say_on_chief(str(error))
        _start_again()
    if isinstance(error, PeerFailed):
        return report(error, exit_codes.FAILED)
    if isinstance(error, PeerMissing):
        FAULTS.report_failure(error)
        return report(error, exit_codes.TRY_AGAIN)
    code = _exit_code_of_loss(error, log_path)
    if code is not None:
        return code
    FAULTS.report_failure(error)
    if isinstance(error, TrainingError):
        return report(error, code_of(error))
    logging.getLogger("tfdp").exception("failed", exc_info=error)  # a bug, in the recipe or here
    print(_own_traceback(error), file=sys.stderr)
    say(f"ended by {type(error).__name__}: {reason_of(error)} (all of it: {log_path})")
    return exit_codes.FAILED


def _start_again() -> NoReturn:
    """Replaces this program by a new start of it, in the same process: its parent sees no end."""
    FAULTS.leave()
    logging.shutdown()
    sys.stdout.flush()
    log.close_log()
    for descriptor in map(int, os.listdir("/proc/self/fd")):  # noqa: PTH208
        if descriptor > 2:  # of TensorFlow's server, for one, whose port is needed again
            with contextlib.suppress(OSError):
                os.set_inheritable(descriptor, False)
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], given_environment())


def _exit_code_of_loss(error: Exception, log_path: Path) -> int | None:
    """Returns the exit code if a call into TensorFlow failed because of another worker, or None."""
    import tensorflow as tf

    is_loss = isinstance(
        error, (tf.errors.UnavailableError, tf.errors.AbortedError, tf.errors.CancelledError)
    )
    # Errors of other types may be due to another worker, or to this one.
    if not is_loss and "Collective ops is aborted" not in str(error):
        return None
    run_end = FAULTS.wait_for_news()
    if run_end is None and not is_loss:
        return None
    logging.getLogger("tfdp").exception("a call into TensorFlow failed", exc_info=error)
    if run_end is not None:
        say(run_end.reason)
        return run_end.code
    say(f"another worker was lost: {in_one_line(error)} (all of it: {log_path})")
    return exit_codes.TRY_AGAIN


def _own_traceback(error: Exception) -> str:
    """Returns a traceback without the frames of libraries, which are in the log."""
    short = traceback.TracebackException.from_exception(error)
    own = [
        frame
        for frame in short.stack
        if "site-packages" not in frame.filename and "__autograph" not in frame.filename
    ]
    short.stack = traceback.StackSummary.from_list(own)
    return "".join(short.format(chain=False)).rstrip()
