"""Prints the output of workers: whole lines, each with its worker's name in front.

Nothing here blocks: the caller selects on ``sources`` and ``targets``. If the reader of the output
stops reading (a pager), workers block once their pipes are full, but never the launcher.
"""

from __future__ import annotations

import collections
import dataclasses
import os
import select
import time
from collections.abc import Iterable, Iterator
from typing import IO, Final

from cluster.hosts.worker import RemoteOutput

Source = IO[bytes] | RemoteOutput
STDOUT: Final = 1
STDERR: Final = 2
PROGRESS_EVERY_S: Final = 2.0
_COLOURS = (36, 33, 35, 32, 34, 31)
_READ_BYTES = 65536
_WRITE_BYTES = 4096  # PIPE_BUF: a pipe that is ready takes so many bytes without blocking
_MAX_PIPE_BYTES = 1 << 20
_MAX_QUEUED_BYTES = 1 << 20
_MAX_LINE_BYTES = 1 << 20


class LineSplitter:
    r"""Cuts a stream into lines.

    Text that a program rewrites in place (progress, by carriage returns) becomes a line of its own
    at most every ``PROGRESS_EVERY_S``; its last state always does.
    """

    def __init__(self) -> None:
        self._unfinished = b""
        self._last_progress_s = float("-inf")

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Takes the next bytes and gives the lines that they complete, without line ends."""
        *lines, rest = (self._unfinished + data).split(b"\n")
        for line in lines:
            *earlier_states, last_state = _states(line) or [b""]
            yield from self._progress(earlier_states)
            yield last_state
        # Carriage returns at the end may belong to a line end that is not complete yet.
        before, separator, _ = rest.rstrip(b"\r").rpartition(b"\r")
        yield from self._progress(_states(before))
        self._unfinished = rest[len(before) + len(separator) :]
        if len(self._unfinished) > _MAX_LINE_BYTES:
            yield from self.finish()

    def finish(self) -> Iterator[bytes]:
        """Gives the last line if it has no line end."""
        yield from _states(self._unfinished)[-1:]
        self._unfinished = b""

    def _progress(self, states: list[bytes]) -> Iterator[bytes]:
        now_s = time.monotonic()
        if states and now_s - self._last_progress_s >= PROGRESS_EVERY_S:
            self._last_progress_s = now_s
            yield states[-1]


def _states(line: bytes) -> list[bytes]:
    """Returns the texts that a line has shown, in order of time, each rewritten by the next."""
    return [state for text in line.split(b"\r") if (state := text.strip(b"\b"))]


@dataclasses.dataclass
class _Stream:
    prefix: bytes
    target: int
    splitter: LineSplitter = dataclasses.field(default_factory=LineSplitter)


class Printer:
    """Copies the output of workers to the launcher's own output, in the order of arrival."""

    def __init__(self) -> None:
        self._streams: dict[Source, _Stream] = {}
        self._queue: collections.deque[tuple[int, bytearray]] = collections.deque()
        self._queued_bytes = 0
        self._closed_targets: set[int] = set()

    @property
    def sources(self) -> list[IO[bytes]]:
        """Streams to ``read`` when they are ready; none while too much output is queued."""
        if self._queued_bytes > _MAX_QUEUED_BYTES:
            return []
        return [source for source in self._streams if not isinstance(source, RemoteOutput)]

    @property
    def targets(self) -> list[int]:
        """The descriptor to ``write`` to when it is ready, if output is queued."""
        return [self._queue[0][0]] if self._queue else []

    def add(self, source: Source, name: str, index: int, target: int) -> None:
        """Adds a worker's stream.

        Args:
            source: the stream.
            name: the worker's name, which starts every line.
            index: the worker's index, which selects a colour.
            target: STDOUT or STDERR.
        """
        prefix = f"[{name}] "
        if os.isatty(target):
            prefix = f"\x1b[{_COLOURS[index % len(_COLOURS)]}m{prefix}\x1b[0m"
        self._streams[source] = _Stream(prefix.encode(), target)

    def read(self, source: IO[bytes]) -> bool:
        """Reads once from a stream; returns whether it got any data."""
        data = source.read(_READ_BYTES)
        if data:
            stream = self._streams[source]
            self._enqueue(stream, stream.splitter.feed(data))
        elif data is not None:
            self._remove(source)
        return bool(data)

    def read_arrived(self) -> None:
        """Reads what has arrived from other hosts, as long as not too much output is queued."""
        for source in list(self._streams):
            if self._queued_bytes > _MAX_QUEUED_BYTES:
                break
            if isinstance(source, RemoteOutput):
                self._read_remote(source)

    def drain(self, source: Source) -> None:
        """Reads the rest of an ended worker's output and closes the stream.

        It does not wait for the end of the stream: an unknown process may still hold the pipe.
        """
        if source not in self._streams:
            return
        if isinstance(source, RemoteOutput):
            self._read_remote(source)
        else:
            os.set_blocking(source.fileno(), False)
            for _ in range(_MAX_PIPE_BYTES // _READ_BYTES):
                if not self.read(source):
                    break
        self._remove(source)

    def log(self, text: str) -> None:
        """Prints a line of the launcher itself, to standard error."""
        self._enqueue(_Stream(b"[launch] ", STDERR), [text.encode()])

    def write(self) -> None:
        """Writes a part of the queue to a target that is ready."""
        target, data = self._queue[0]
        try:
            written = os.write(target, data[:_WRITE_BYTES])
        except BlockingIOError:
            return
        except OSError:  # the reader has gone, which is no reason to stop the workers
            self._closed_targets.add(target)
            written = len(data)
        del data[:written]
        self._queued_bytes -= written
        if not data:
            self._queue.popleft()

    def flush(self) -> None:
        """Writes the whole queue; blocks until readers have taken it."""
        while self.targets:
            select.select([], self.targets, [])
            self.write()

    def _enqueue(self, stream: _Stream, lines: Iterable[bytes]) -> None:
        for line in lines:
            if stream.target in self._closed_targets:
                continue
            if not self._queue or self._queue[-1][0] != stream.target:
                self._queue.append((stream.target, bytearray()))
            text = stream.prefix + line + b"\n"
            self._queue[-1][1].extend(text)
            self._queued_bytes += len(text)

    def _read_remote(self, source: RemoteOutput) -> None:
        if data := source.read():
            stream = self._streams[source]
            self._enqueue(stream, stream.splitter.feed(data))

    def _remove(self, source: Source) -> None:
        if stream := self._streams.pop(source, None):
            self._enqueue(stream, stream.splitter.finish())
            if not isinstance(source, RemoteOutput):
                source.close()
