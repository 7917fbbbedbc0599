"""What the command lines that run on every worker share: flags, and errors to exit codes."""

from __future__ import annotations

import logging
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

from absl import flags

from cluster import exits
from cluster.spec import ClusterError
from tfdp.errors import BadInput, PeerFailed, PeerMissing, Stopped, TrainingError
from tfdp.log import say
from tfdp.peers import PEERS
from tfdp.signals import Signals

# What ended the work, until the process is gone: its frames hold iterators over data, and to let
# one go waits for the ops that read, which may be stuck for good.
_KEPT: list[BaseException] = []


def parse(values: flags.FlagValues, argv: list[str]) -> None:
    """Reads a command line.

    Raises:
        BadInput: if it is wrong, or Keras is told to use something else than TensorFlow.
    """
    try:
        rest = values(argv)[1:]
    except flags.Error as error:
        raise BadInput(f"{error} (--help lists the flags)") from None
    if rest:
        raise BadInput(f"{rest[0]!r} is not a flag: flags begin with -- (--help lists them)")
    backend = os.environ.get("KERAS_BACKEND", "tensorflow")
    if backend != "tensorflow":
        raise BadInput(f"KERAS_BACKEND is {backend}: it has to be tensorflow, or not set")


def end(work: Callable[[], None], signals: Signals, log_path: Path) -> int:
    """Does a worker's work, tells people and the other workers what ended it, gives the exit code.

    Args:
        work: imports TensorFlow, and does all.
        signals: what this process was told.
        log_path: where the whole of an error is.
    """
    PEERS.end_with_run()
    try:
        work()
    except (Exception, SystemExit) as error:
        _KEPT.append(error)
        if isinstance(error, SystemExit):
            error = TrainingError(f"the recipe ended the process: sys.exit({error.code!r})")
        return _code_of(error, signals, log_path)
    finally:
        PEERS.leave()
    return exits.FINISHED


def failed(code: int, error: BaseException) -> int:
    """Says what is wrong, and gives the code back."""
    say(f"{error}" if isinstance(error, (TrainingError, ClusterError)) else f"{error!r}")
    return code


def _code_of(error: Exception, signals: Signals, log_path: Path) -> int:
    """Tells people, and the other workers, what ended the run; returns the exit code."""
    if isinstance(error, Stopped):
        say(f"{error}; its state is saved, and the same command goes on from there")
        return exits.TRY_AGAIN if signals.received is None else 128 + signals.received
    if isinstance(error, PeerFailed):
        return failed(exits.FAILED, error)
    if isinstance(error, PeerMissing):
        return failed(exits.TRY_AGAIN, error)
    code = _lost_another(error, log_path)
    if code is not None:
        return code
    PEERS.fail(error)
    if isinstance(error, TrainingError):
        return failed(exits.BAD_INPUT if isinstance(error, BadInput) else exits.FAILED, error)
    logging.getLogger("tfdp").exception("failed", exc_info=error)  # a bug, in the recipe or here
    print(_for_people(error), file=sys.stderr)
    say(f"ended by the error above; all of it is in {log_path}")
    return exits.FAILED


def _lost_another(error: Exception, log_path: Path) -> int | None:
    """The exit code if a call into TensorFlow failed because of another worker; None if not."""
    import tensorflow as tf

    is_lost = isinstance(
        error, (tf.errors.UnavailableError, tf.errors.AbortedError, tf.errors.CancelledError)
    )
    # Other types may be about another worker, or about this one.
    if not is_lost and "Collective ops is aborted" not in str(error):
        return None
    end = PEERS.news()
    if end is None and not is_lost:
        return None
    logging.getLogger("tfdp").exception("a call into TensorFlow failed", exc_info=error)
    if end is not None:
        say(end.reason)
        return end.code
    say(f"another worker was lost: {str(error).splitlines()[0][:200]} (all of it: {log_path})")
    return exits.TRY_AGAIN


def _for_people(error: Exception) -> str:
    """A traceback without the frames of libraries, which are in the log."""
    short = traceback.TracebackException.from_exception(error)
    own = [
        frame
        for frame in short.stack
        if "site-packages" not in frame.filename and "__autograph" not in frame.filename
    ]
    short.stack = traceback.StackSummary.from_list(own)
    return "".join(short.format(chain=False)).rstrip()
