"""Prints what workers say: whole lines, each with its worker's name in front.

Nothing here waits: the caller selects on ``sources`` and ``targets``. A reader that has stopped to
read, such as a pager, makes workers wait in the end, but never the launcher.
"""

from __future__ import annotations

import collections
import dataclasses
import os
import select
import time
from collections.abc import Iterator
from typing import IO, Final

STDOUT: Final = 1
STDERR: Final = 2
PROGRESS_EVERY_S: Final = 2.0
_COLOURS = (36, 33, 35, 32, 34, 31)
_CHUNK = 65536
_PIPE_BUF = 4096  # as much as a pipe that is ready takes without making anyone wait
_BACKLOG = 1 << 20
_LONGEST_LINE = 1 << 20


class Lines:
    r"""Cuts a stream into lines.

    What a program rewrites in place, with carriage returns, comes as a line of its own at most
    every ``PROGRESS_EVERY_S``; its last state always comes.
    """

    def __init__(self) -> None:
        self._rest = b""
        self._last_progress_s = float("-inf")

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Takes what was read and gives the lines that it completes, without their ends."""
        *lines, rest = (self._rest + data).split(b"\n")
        for line in lines:
            *states, last = _states(line) or [b""]
            yield from self._progress(states)
            yield last
        # Carriage returns at the end may turn out to be the first half of a line's end.
        before, between, _ = rest.rstrip(b"\r").rpartition(b"\r")
        yield from self._progress(_states(before))
        self._rest = rest[len(before) + len(between) :]
        if len(self._rest) > _LONGEST_LINE:
            yield from self.end()

    def end(self) -> Iterator[bytes]:
        """Gives the last line, if its end never came."""
        yield from _states(self._rest)[-1:]
        self._rest = b""

    def _progress(self, states: list[bytes]) -> Iterator[bytes]:
        now_s = time.monotonic()
        if states and now_s - self._last_progress_s >= PROGRESS_EVERY_S:
            self._last_progress_s = now_s
            yield states[-1]


def _states(line: bytes) -> list[bytes]:
    """What a line showed, one after the other, as it was rewritten."""
    return [state for part in line.split(b"\r") if (state := part.strip(b"\b"))]


@dataclasses.dataclass
class _Stream:
    prefix: bytes
    target: int
    lines: Lines = dataclasses.field(default_factory=Lines)


class Printer:
    """Copies workers' output to the launcher's own, in the order in which it came."""

    def __init__(self) -> None:
        self._streams: dict[IO[bytes], _Stream] = {}
        self._queue: collections.deque[tuple[int, bytearray]] = collections.deque()
        self._queued_bytes = 0
        self._closed: set[int] = set()

    @property
    def sources(self) -> list[IO[bytes]]:
        """What to ``read`` from when it is ready; nothing while too much is not yet written."""
        return [] if self._queued_bytes > _BACKLOG else list(self._streams)

    @property
    def targets(self) -> list[int]:
        """What to ``write`` to when it is ready."""
        return [self._queue[0][0]] if self._queue else []

    def follow(self, source: IO[bytes], name: str, place: int, target: int) -> None:
        """Takes on a worker's stream.

        Args:
            source: where to read it.
            name: what to put in front of every line.
            place: the worker's number, which chooses a colour.
            target: STDOUT or STDERR.
        """
        prefix = f"[{name}] "
        if os.isatty(target):
            prefix = f"\x1b[{_COLOURS[place % len(_COLOURS)]}m{prefix}\x1b[0m"
        self._streams[source] = _Stream(prefix.encode(), target)

    def read(self, source: IO[bytes]) -> bool:
        """Reads once; returns whether there was anything to read."""
        data = source.read(_CHUNK)
        if data:
            self._add(self._streams[source], self._streams[source].lines.feed(data))
        elif data is not None:
            self._forget(source)
        return bool(data)

    def finish(self, source: IO[bytes]) -> None:
        """Reads what an ended worker has left in its pipe, and closes it.

        It doesn't wait for the pipe's end: somebody whom we couldn't find may still hold it.
        """
        if source in self._streams:
            os.set_blocking(source.fileno(), False)
            most = (1 << 20) // _CHUNK  # no pipe holds more
            while most and self.read(source):
                most -= 1
            self._forget(source)

    def say(self, text: str) -> None:
        """Prints a line of the launcher's own to standard error."""
        self._add(_Stream(b"[launch] ", STDERR), iter([text.encode()]))

    def write(self) -> None:
        """Writes as much as is taken without waiting."""
        target, data = self._queue[0]
        try:
            written = os.write(target, data[:_PIPE_BUF])
        except BlockingIOError:
            return
        except OSError:  # the reader has gone: that is no reason to stop training
            self._closed.add(target)
            written = len(data)
        del data[:written]
        self._queued_bytes -= written
        if not data:
            self._queue.popleft()

    def flush(self) -> None:
        """Writes everything, however long it takes."""
        while self.targets:
            select.select([], self.targets, [])
            self.write()

    def _add(self, stream: _Stream, lines: Iterator[bytes]) -> None:
        for line in lines:
            if stream.target in self._closed:
                continue
            if not self._queue or self._queue[-1][0] != stream.target:
                self._queue.append((stream.target, bytearray()))
            text = stream.prefix + line + b"\n"
            self._queue[-1][1].extend(text)
            self._queued_bytes += len(text)

    def _forget(self, source: IO[bytes]) -> None:
        if stream := self._streams.pop(source, None):
            self._add(stream, stream.lines.end())
            source.close()
