"""SIGTERM and SIGINT, waited for in a thread.

Python runs handlers between two bytecodes of the main thread, so none runs while a call into
TensorFlow lasts, and TensorFlow puts a handler of its own on SIGTERM, which swallows it. A signal
that all threads block, and one waits for, reaches us at once.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from typing import NoReturn

from tfdp.log import say
from tfdp.peers import PEERS, end_process

ECHO_S = 0.3  # some parents signal the process and then its group: that counts as one
_WATCHED = (signal.SIGTERM, signal.SIGINT)


class Signals:
    """The first signal asks the run to stop, the second ends the process.

    Make it before anything starts a thread: threads inherit what is blocked.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._is_training = False
        self._lock = threading.Lock()
        signal.pthread_sigmask(signal.SIG_BLOCK, _WATCHED)
        threading.Thread(target=self._wait, name="signals", daemon=True).start()

    @contextlib.contextmanager
    def awaited(self) -> Iterator[None]:
        """While it lasts, a signal is only noted: there is a state to be saved first.

        One that came too late for the block to heed it ends the process with the block.
        """
        self._is_training = True
        try:
            yield
        finally:
            with self._lock:
                self._is_training = False
        if self.received is not None:
            _leave(self.received)

    def _wait(self) -> None:
        number = signal.sigwait(_WATCHED)
        with self._lock:
            if not self._is_training:
                _leave(number)
            self.received = number
        say(f"got {signal.Signals(number).name}: saving, then stopping (a second one ends at once)")
        signal.sigtimedwait(_WATCHED, ECHO_S)
        _leave(signal.sigwait(_WATCHED))


def _leave(number: int) -> NoReturn:
    """Ends the process at once; the others hear why."""
    PEERS.stop(signal.Signals(number).name)
    end_process(128 + number)
