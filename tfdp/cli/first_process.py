"""The first process of a container must not be a worker.

The kernel keeps the first process of a process namespace from all signals for which it has no
handler, except those from outside. A worker's guard ends it by such signals if another worker is
lost while TensorFlow starts (``cluster.meeting.guard``), and the worker would wait forever instead.
"""

from __future__ import annotations

import os
import signal
from typing import Final

_FORWARDED: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)


def go_on_in_a_child() -> None:
    """In the first process of a container, goes on in a child; in any other one, does nothing.

    The first process hands signals on to the child and ends as the child does: with its exit code,
    or with 128 + the signal that killed it. Call it before anything starts a thread.
    """
    if os.getpid() != 1:
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _FORWARDED)
    child = os.fork()
    if child:
        for number in _FORWARDED:
            signal.signal(number, lambda number, _: os.kill(child, number))
    signal.pthread_sigmask(signal.SIG_SETMASK, before)
    if child:
        os._exit(_exit_code_of(child))


def _exit_code_of(child: int) -> int:
    """Waits for the end of a child, and of processes that others left behind."""
    while True:
        ended, status = os.wait()
        if ended == child:
            code = os.waitstatus_to_exitcode(status)
            return code if code >= 0 else 128 - code
