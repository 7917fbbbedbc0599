"""A worker on another host, with the interface of one on this machine."""

from __future__ import annotations

import signal
from collections.abc import Callable, Mapping
from typing import Any

from cluster import policy

Send = Callable[[Mapping[str, Any]], None]


class RemoteOutput:
    """A stream of a remote worker's output: what has arrived and was not read yet.

    It has no descriptor to select on: ask ``has_arrived``.

    Args:
        on_read: called with the number of bytes of each read; the keeper may then send as many.
    """

    def __init__(self, on_read: Callable[[int], None]) -> None:
        self._arrived = bytearray()
        self._on_read = on_read

    @property
    def has_arrived(self) -> bool:
        """Whether there is anything to read."""
        return bool(self._arrived)

    def feed(self, data: bytes) -> None:
        """Adds output that has arrived."""
        self._arrived += data

    def read(self) -> bytes | None:
        """Returns all that has arrived, without waiting; None if nothing has."""
        if not self._arrived:
            return None
        data = bytes(self._arrived)
        self._arrived.clear()
        self._on_read(len(data))
        return data


class RemoteWorker:
    """A worker, or a spare for one, that a keeper has started.

    Args:
        name: the worker's name, for people.
        number: the keeper's number for it.
        send: sends a message to the keeper.
    """

    def __init__(self, name: str, number: int, send: Send) -> None:
        self.name = name
        self.loss = ""
        self._number = number
        self._send = send
        self._code: int | None = None
        self._sample: policy.Sample | None = None
        self.stdout = RemoteOutput(lambda size: self._tell(taken=size, stream=1))
        self.stderr = RemoteOutput(lambda size: self._tell(taken=size, stream=2))

    def write_line(self, line: str) -> bool:
        """Writes a line to its standard input and closes it; returns False if it has ended."""
        self._tell(line=line)
        return self._code is None

    def poll(self) -> int | None:
        """Returns the exit code, or minus the signal that killed it; None while it runs."""
        return self._code

    def sample(self) -> policy.Sample | None:
        """Returns the keeper's newest sample of the process; None if it was returned before."""
        sample, self._sample = self._sample, None
        return sample

    def signal(self, number: signal.Signals) -> None:
        """Sends a signal to the process alone, but SIGKILL to its whole process group."""
        self._tell(signal=int(number))

    def note_sample(self, sample: policy.Sample) -> None:
        """Takes a sample of the process from the keeper."""
        self._sample = sample

    def note_end(self, code: int, loss: str = "") -> None:
        """Notes that the worker has ended; ``loss`` is as in ``policy.Exit``."""
        if self._code is None:
            self._code, self.loss = code, loss

    def _tell(self, **message: Any) -> None:
        if self._code is None:
            self._send({"to": self._number, **message})
