"""SIGTERM and SIGINT, received in a thread.

Python runs signal handlers between two bytecodes of the main thread, so none runs during a call
into TensorFlow. TensorFlow installs a handler of its own for SIGTERM, which ignores the signal. A
signal that all threads block, and that one thread waits for, arrives at once.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from typing import NoReturn

from tfdp.log import say
from tfdp.workers.faults import FAULTS, end_process

# Some parents signal the process and then its process group; within this time that is one signal.
ECHO_S = 0.3
_WATCHED = (signal.SIGTERM, signal.SIGINT)


class Signals:
    """The first signal asks the run to stop; the second one ends the process.

    Create it before anything starts a thread: a thread inherits the blocked signals.

    Attributes:
        received: number of the first signal during ``deferred``, or None.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._is_deferred = False
        self._lock = threading.Lock()
        signal.pthread_sigmask(signal.SIG_BLOCK, _WATCHED)
        threading.Thread(target=self._wait, name="signals", daemon=True).start()

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        """Inside the block, a signal only sets ``received``: the run has a state to save first.

        If a signal came and the block still ends normally, the process ends then.
        """
        self._is_deferred = True
        try:
            yield
        finally:
            with self._lock:
                self._is_deferred = False
        if self.received is not None:
            _end_by(self.received)

    def _wait(self) -> None:
        number = signal.sigwait(_WATCHED)
        with self._lock:
            if not self._is_deferred:
                _end_by(number)
            self.received = number
        say(f"got {signal.Signals(number).name}: saving, then stopping (a second one ends at once)")
        signal.sigtimedwait(_WATCHED, ECHO_S)
        _end_by(signal.sigwait(_WATCHED))


def _end_by(number: int) -> NoReturn:
    """Ends the process at once; the other workers learn why."""
    FAULTS.report_stop(signal.Signals(number).name)
    end_process(128 + number)
