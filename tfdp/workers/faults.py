"""How a fault of one worker ends all of them.

A process has one liveness connection to the other workers (``cluster.meeting.liveness``), which
``tfdp.connect`` makes. Bad news from there ends this process, wherever its main thread is: the main
thread usually waits, in a call into TensorFlow, for the very worker that is gone.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Collection, Sequence
from typing import Any, Final, NoReturn

from cluster import exit_codes
from cluster.meeting.liveness import Liveness, RunEnd
from tfdp import log
from tfdp.errors import BadInput, PeerMissing, Superseded

# How long the main thread may take to end by itself after bad news. After a fault of another worker
# this worker may be about to report the same fault, with a better message.
GRACE_AFTER_LOSS_S: Final = 0.4
GRACE_AFTER_FAULT_S: Final = 1.5
# TensorFlow notices a frozen worker some seconds before the liveness connection is sure.
NEWS_TIMEOUT_S: Final = 6.0
_SHOWN_CHARACTERS = 300  # of an error
# Lines with which TensorFlow reports where an error happened, before it reports the error.
_LOCATION_LINES = ("Graph execution error:", "Detected at node", "<stack traces", "File ")


class Faults:
    """The faults of this process and of the other workers.

    Without ``join`` (a run of one process) every method does nothing.
    """

    def __init__(self) -> None:
        self._liveness: Liveness | None = None
        self._name = ""
        self._every_error_ends_process = False
        self._lock = threading.Lock()
        self._ending_thread: int | None = None  # the thread that ends the process
        self._ending = threading.Event()

    def end_process_on_error(self) -> None:
        """Declares that any error of the run ends this process, as in ``python -m tfdp.train``.

        Other workers then learn of an error where it occurs. In a user's script, which may catch
        it, they learn of it when it ends the process.
        """
        self._every_error_ends_process = True

    def join(self, liveness: Liveness, name: str) -> None:
        """Starts to receive faults of the other workers.

        Args:
            liveness: connection to the other workers.
            name: name of this worker in messages to the others.
        """
        self._liveness, self._name = liveness, name
        liveness.watch(self._on_run_end)
        atexit.register(self._at_exit)

    def report_if_fatal(self, error: BaseException) -> bool:
        """Reports ``error`` to the other workers if it will end this process.

        Returns:
            Whether it was reported.
        """
        if self._liveness is None or not self._every_error_ends_process:
            return False
        self.report_failure(error)
        return True

    def report_failure(self, error: BaseException) -> None:
        """Reports to the other workers, once, that this process ends because of ``error``."""
        if self._liveness is not None and self._take_over():
            self._liveness.end_run(code_of(error), f"{self._name} failed: {in_one_line(error)}")

    def report_stop(self, signal_name: str) -> None:
        """Reports to the other workers that a signal ends this process at once."""
        if self._liveness is not None and self._ending_thread is None:
            self._take_over()
            reason = f"{self._name} got {signal_name} and ends"
            self._liveness.end_run(exit_codes.TRY_AGAIN, reason)

    def leave(self) -> None:
        """Reports to the other workers, once, that this process ends as it should."""
        if self._liveness is not None and self._take_over():
            self._liveness.leave()

    @property
    def names(self) -> Sequence[str]:
        """Names of all workers, in the order of their indices; a nameless one without ``join``."""
        return ("",) if self._liveness is None else self._liveness.names

    def connections(self) -> dict[int, str]:
        """Returns the name of the other worker by the descriptor of the connection to it."""
        return {} if self._liveness is None else self._liveness.connections()

    def answer_by(self, answer: Callable[[str], dict[str, Any]]) -> None:
        """Sets what answers questions of the chief; it is called in a thread of its own."""
        if self._liveness is not None:
            self._liveness.answer_by(answer)

    def ask(
        self, question: str, timeout_s: float, of: Collection[int] | None = None
    ) -> dict[int, dict[str, Any]]:
        """Asks other workers; on the chief.

        Returns:
            The answers that came in ``timeout_s``, by the index of the worker.
        """
        return {} if self._liveness is None else self._liveness.ask(question, timeout_s, of)

    def end_run(self, line: str, others_line: str) -> NoReturn:
        """Ends all workers with ``exit_codes.TRY_AGAIN``, from another thread than the main thread.

        Args:
            line: for people, on this worker.
            others_line: for people, on the other workers.
        """
        self._take_over()
        log.write_stacks()
        log.say(line)
        if self._liveness is not None:
            self._liveness.end_run(exit_codes.TRY_AGAIN, others_line)
            time.sleep(2 * GRACE_AFTER_LOSS_S)  # or TensorFlow might end them before their stacks
        end_process(exit_codes.TRY_AGAIN)

    def wait_for_news(self) -> RunEnd | None:
        """Returns which worker was lost or failed, after TensorFlow has reported a loss.

        Returns:
            None if that is still unknown after ``NEWS_TIMEOUT_S``.
        """
        run_end = None if self._liveness is None else self._liveness.wait_for_end(NEWS_TIMEOUT_S)
        if run_end is not None:
            self._take_over()
        return run_end

    def _on_run_end(self, run_end: RunEnd) -> None:
        is_loss = run_end.code == exit_codes.TRY_AGAIN
        if self._ending.wait(GRACE_AFTER_LOSS_S if is_loss else GRACE_AFTER_FAULT_S):
            return
        self._take_over()
        log.write_stacks()
        log.say(run_end.reason)
        end_process(run_end.code)

    def _take_over(self) -> bool:
        """Makes this thread the one that ends the process; blocks any other thread for good.

        Returns:
            Whether no thread had done so before.
        """
        this_thread = threading.get_ident()
        with self._lock:
            is_first = self._ending_thread is None
            if is_first:
                self._ending_thread = this_thread
                self._ending.set()
        if self._ending_thread != this_thread:
            threading.Event().wait()
        return is_first

    def _at_exit(self) -> None:
        error = getattr(sys, "last_value", None)  # the exception that Python has just printed
        if isinstance(error, Exception):
            self.report_failure(error)
        elif error is None:
            self.leave()


FAULTS: Final = Faults()


def code_of(error: BaseException) -> int:
    """Returns the exit code of all workers if one of them ends because of ``error``."""
    if isinstance(error, (PeerMissing, Superseded)):
        return exit_codes.TRY_AGAIN
    return exit_codes.BAD_INPUT if isinstance(error, BadInput) else exit_codes.FAILED


def in_one_line(error: BaseException) -> str:
    """Returns an error's type and the most telling line of its message."""
    lines = (line.strip() for line in str(error).splitlines())
    telling = next((line for line in lines if line and not line.startswith(_LOCATION_LINES)), "")
    return f"{type(error).__name__}: {telling}"[:_SHOWN_CHARACTERS]


def end_process(code: int) -> NoReturn:
    """Ends the process at once, without destroying TensorFlow's objects one by one.

    If workers left one after the other, TensorFlow's coordination service would abort those that
    are still destroying objects.
    """
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # nobody reads it any more
            stream.flush()
    os._exit(code)
