from __future__ import annotations

import itertools
import os
import random
import select
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import pytest

from cluster.hosts.worker import RemoteOutput
from cluster.launching import printer
from cluster.launching.printer import LineSplitter, Printer


def cut(*pieces: bytes) -> list[bytes]:
    """The lines of a stream that comes in pieces."""
    splitter = LineSplitter()
    lines = [line for piece in pieces for line in splitter.feed(piece)]
    return [*lines, *splitter.finish()]


@pytest.mark.parametrize(
    ("pieces", "lines"),
    [
        ([], []),
        ([b"a\nb\n"], [b"a", b"b"]),
        ([b"a", b"b", b"\nc", b"\n"], [b"ab", b"c"]),
        ([b"a\n\n\nb\n"], [b"a", b"", b"", b"b"]),
        ([b"a\nlast"], [b"a", b"last"]),
        ([b"a\r\nb\r\n"], [b"a", b"b"]),
        ([b"a\r", b"\nb\r", b"\n"], [b"a", b"b"]),
        ([b"a\r\r\nb"], [b"a", b"b"]),
        ([b"a\r"], [b"a"]),
        ([b"\xff\x00\n"], [b"\xff\x00"]),
    ],
)
def test_lines_are_whole(pieces: list[bytes], lines: list[bytes]) -> None:
    assert cut(*pieces) == lines


def test_lines_do_not_depend_on_how_the_stream_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(printer, "PROGRESS_EVERY_S", float("inf"))
    text = b"one\r\n\n1/3\r2/3\r3/3\ntwo\r\nthree"
    whole = cut(text)
    rng = random.Random(1)
    for _ in range(200):
        cuts = [0, *sorted(rng.choices(range(len(text) + 1), k=6)), len(text)]
        pieces = [text[a:b] for a, b in itertools.pairwise(cuts)]
        # Progress is printed when it comes, so only its earlier states may differ.
        kept = [line for line in cut(*pieces) if b"/3" not in line or line == b"3/3"]
        assert kept == [line for line in whole if b"/3" not in line or line == b"3/3"]


def test_progress_is_printed_at_intervals_and_at_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = 100.0
    monkeypatch.setattr("time.monotonic", lambda: now_s)
    splitter = LineSplitter()
    shown: list[bytes] = []
    for step in range(1000):
        shown += splitter.feed(b"\b\b\b\b\rstep %d" % step)  # as Keras does it
        now_s += printer.PROGRESS_EVERY_S / 100
    shown += splitter.feed(b"\n")
    assert shown[-1] == b"step 999"
    assert 8 <= len(shown) <= 12
    numbers = [int(line.split()[1]) for line in shown]
    assert numbers == sorted(set(numbers))


def test_a_line_without_end_is_not_kept_without_limit() -> None:
    splitter = LineSplitter()
    given = sum(len(line) for _ in range(64) for line in splitter.feed(b"x" * 65536))
    assert given > 2 << 20


class Streams:
    """Workers' streams, and a file with the output of the printer."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.printer = Printer()
        self.writers: list[int] = []
        self.sources: list[IO[bytes]] = []
        self.out = os.open(folder / "out", os.O_WRONLY | os.O_CREAT)

    def add(self, name: str, index: int = 0, target: int | None = None) -> tuple[int, IO[bytes]]:
        reader, writer = os.pipe()
        source = os.fdopen(reader, "rb", buffering=0)
        self.writers.append(writer)
        self.sources.append(source)
        self.printer.add(source, name, index, self.out if target is None else target)
        return writer, source

    @property
    def text(self) -> str:
        self.printer.flush()
        return (self.folder / "out").read_text()


@pytest.fixture
def streams(tmp_path: Path) -> Iterator[Streams]:
    streams = Streams(tmp_path)
    yield streams
    for descriptor in (*streams.writers, streams.out):
        os.close(descriptor)
    for source in streams.sources:
        source.close()


def test_lines_of_two_workers_have_their_names_and_are_not_torn(streams: Streams) -> None:
    (a, from_a), (b, from_b) = streams.add("worker 0"), streams.add("worker 1")
    os.write(a, b"half of ")
    streams.printer.read(from_a)
    os.write(b, b"whole\n")
    streams.printer.read(from_b)
    os.write(a, b"a line\n")
    streams.printer.read(from_a)
    assert streams.text == "[worker 1] whole\n[worker 0] half of a line\n"


@pytest.mark.timeout(20)
def test_the_last_output_of_an_ended_worker_is_printed_though_another_process_holds_its_pipe(
    streams: Streams,
) -> None:
    writer, source = streams.add("worker 0")  # the writing end stays open
    os.write(writer, b"x\n" * 30_000 + b"no end")
    streams.printer.drain(source)
    assert streams.text == "[worker 0] x\n" * 30_000 + "[worker 0] no end\n"
    assert source not in streams.printer.sources
    assert source.closed


@pytest.mark.timeout(20)
def test_a_reader_that_does_not_read_never_blocks_the_printer(streams: Streams) -> None:
    unread, target = os.pipe()
    try:
        writer, source = streams.add("worker 0", target=target)
        for _ in range(10_000):
            if not streams.printer.sources:
                break
            os.write(writer, b"y" * 1023 + b"\n")
            streams.printer.read(source)
        assert not streams.printer.sources, "it reads without a limit"
        assert streams.printer.targets == [target]
        while select.select([], streams.printer.targets, [], 0)[1]:
            streams.printer.write()
        os.close(unread)
        unread = -1
        while streams.printer.targets:
            streams.printer.write()  # into a pipe without a reader
        assert streams.printer.sources == [source]
    finally:
        os.close(target)
        if unread >= 0:
            os.close(unread)


def test_output_of_other_hosts_is_read_when_it_has_arrived_and_as_far_as_there_is_room(
    streams: Streams,
) -> None:
    taken: list[int] = []
    source = RemoteOutput(taken.append)
    streams.printer.add(source, "worker 7", 7, streams.out)
    assert streams.printer.sources == [], "it has no descriptor"
    source.feed(b"half of ")
    streams.printer.read_arrived()
    source.feed(b"a line\n" + b"y\n" * printer._MAX_QUEUED_BYTES)
    streams.printer.read_arrived()
    assert len(taken) == 2
    source.feed(b"last")
    streams.printer.read_arrived()
    assert len(taken) == 2, "too much is queued"
    streams.printer.drain(source)
    assert taken[2:] == [4]
    text = streams.text
    assert text.startswith("[worker 7] half of a line\n[worker 7] y\n")
    assert text.endswith("[worker 7] y\n[worker 7] last\n")


def test_only_a_terminal_gets_colours(streams: Streams) -> None:
    terminal, slave = os.openpty()
    try:
        for index in range(2):
            writer, source = streams.add(f"worker {index}", index, target=slave)
            os.write(writer, b"hello\n")
            streams.printer.read(source)
        streams.printer.flush()
        first, second = os.read(terminal, 4096).decode().splitlines()
    finally:
        os.close(terminal)
        os.close(slave)
    assert first.startswith("\x1b[")
    assert first.endswith("[worker 0] \x1b[0mhello")
    assert first.split("[worker")[0] != second.split("[worker")[0]
