"""What becomes of this process when another worker is lost or fails, and how others learn of it.

There is one wire to the other workers in a process (``cluster.wire``), made by ``tfdp.connect``.
Bad news on it ends the process, wherever its main thread is: most often that waits, in a call into
TensorFlow, for the very worker that is gone.
"""

from __future__ import annotations

import atexit
import logging
import os
import sys
import threading
from typing import Final, NoReturn

from cluster import exits
from cluster.wire import End, Wire
from tfdp import log
from tfdp.errors import BadInput

# How long the main thread may take to end by itself: the same fault may have come up here, and its
# own words are better. A lost worker is nobody's fault, and not to be waited for.
PATIENCE_S: Final = 0.4
PATIENCE_WITH_FAULTS_S: Final = 1.5
NEWS_S: Final = 6.0  # TensorFlow notices a frozen worker some seconds before the wire is sure
_SHOWN = 300  # characters of an error
# How lines begin by which TensorFlow says where something went wrong, before it says what.
_WHERE = ("Graph execution error:", "Detected at node", "<stack traces", "File ")


class Peers:
    """This process among the other workers; without a wire, nothing here does anything."""

    def __init__(self) -> None:
        self._wire: Wire | None = None
        self._name = ""
        self._ends_with_run = False
        self._lock = threading.Lock()
        self._ender: int | None = None  # the thread that ends the process
        self._ending = threading.Event()

    def end_with_run(self) -> None:
        """Any error of the run will end this process: others hear of it where it comes up.

        Otherwise a script may catch it, and they hear of it if it ends the process.
        """
        self._ends_with_run = True

    def join(self, wire: Wire, name: str) -> None:
        """Starts to listen to the other workers.

        Args:
            wire: to the others.
            name: this worker's, as others call it.
        """
        self._wire, self._name = wire, name
        wire.watch(self._hear)
        atexit.register(self._at_exit)

    def share(self, error: BaseException) -> bool:
        """Tells the others that this worker fails, if ``error`` will end the process.

        Returns:
            Whether they have been told.
        """
        if self._wire is None or not self._ends_with_run:
            return False
        self.fail(error)
        return True

    def fail(self, error: BaseException) -> None:
        """Tells the others, once, that this process ends by a fault of its own."""
        if self._wire is not None and self._take_over():
            code = exits.BAD_INPUT if isinstance(error, BadInput) else exits.FAILED
            self._wire.tell(code, f"{self._name} failed: {in_one_line(error)}")

    def stop(self, signal_name: str) -> None:
        """Tells the others that this process ends at once, because a signal says so."""
        if self._wire is not None and self._ender is None:
            self._take_over()
            self._wire.tell(exits.TRY_AGAIN, f"{self._name} was told to stop ({signal_name})")

    def leave(self) -> None:
        """Says goodbye, once, at the end of the process."""
        if self._wire is not None and self._take_over():
            self._wire.leave()

    def news(self) -> End | None:
        """Who is lost or has failed, now that TensorFlow says that somebody is; None if unknown."""
        end = None if self._wire is None else self._wire.wait(NEWS_S)
        if end is not None:
            self._take_over()
        return end

    def _hear(self, end: End) -> None:
        lost = end.code == exits.TRY_AGAIN
        if self._ending.wait(PATIENCE_S if lost else PATIENCE_WITH_FAULTS_S):
            return
        self._take_over()
        log.trace()
        log.say(end.reason)
        end_process(end.code)

    def _take_over(self) -> bool:
        """Makes this thread the one that ends the process; another one stays here for good.

        Returns:
            Whether this is the first time.
        """
        me = threading.get_ident()
        with self._lock:
            is_first = self._ender is None
            if is_first:
                self._ender = me
                self._ending.set()
        if self._ender != me:
            threading.Event().wait()
        return is_first

    def _at_exit(self) -> None:
        error = getattr(sys, "last_value", None)  # what Python has just shown
        if isinstance(error, Exception):
            self.fail(error)
        elif error is None:
            self.leave()


PEERS: Final = Peers()


def in_one_line(error: BaseException) -> str:
    """An error's type and the line of its message that says most."""
    lines = (line.strip() for line in str(error).splitlines())
    telling = next((line for line in lines if line and not line.startswith(_WHERE)), "")
    return f"{type(error).__name__}: {telling}"[:_SHOWN]


def end_process(code: int) -> NoReturn:
    """Ends the process without taking TensorFlow down piece by piece.

    Workers that leave one after the other make TensorFlow's coordination service abort those that
    are still busy with leaving.
    """
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
