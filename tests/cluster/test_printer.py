from __future__ import annotations

import itertools
import os
import random
import select
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import pytest

from cluster import printer
from cluster.printer import Lines, Printer


def cut(*pieces: bytes) -> list[bytes]:
    """The lines of a stream that comes in pieces."""
    lines = Lines()
    given = [line for piece in pieces for line in lines.feed(piece)]
    return [*given, *lines.end()]


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


def test_lines_do_not_depend_on_how_they_come(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(printer, "PROGRESS_EVERY_S", float("inf"))
    text = b"one\r\n\n1/3\r2/3\r3/3\ntwo\r\nthree"
    whole = cut(text)
    chance = random.Random(1)
    for _ in range(200):
        marks = [0, *sorted(chance.choices(range(len(text) + 1), k=6)), len(text)]
        pieces = [text[a:b] for a, b in itertools.pairwise(marks)]
        # Only which of the progress is shown may differ: it is shown when it comes.
        kept = [line for line in cut(*pieces) if b"/3" not in line or line == b"3/3"]
        assert kept == [line for line in whole if b"/3" not in line or line == b"3/3"]


def test_progress_is_printed_now_and_then_and_at_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = 100.0
    monkeypatch.setattr("time.monotonic", lambda: now_s)
    lines = Lines()
    shown: list[bytes] = []
    for step in range(1000):
        shown += lines.feed(b"\b\b\b\b\rstep %d" % step)  # as Keras does it
        now_s += printer.PROGRESS_EVERY_S / 100
    shown += lines.feed(b"\n")
    assert shown[-1] == b"step 999"
    assert 8 <= len(shown) <= 12
    numbers = [int(line.split()[1]) for line in shown]
    assert numbers == sorted(set(numbers))


def test_a_line_without_end_is_not_kept_for_ever() -> None:
    lines = Lines()
    given = sum(len(line) for _ in range(64) for line in lines.feed(b"x" * 65536))
    assert given > 2 << 20


class Pipe:
    """A worker's stream, and what the printer made of it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.printer = Printer()
        self.writers: list[int] = []
        self.sources: list[IO[bytes]] = []
        self.out = os.open(folder / "out", os.O_WRONLY | os.O_CREAT)

    def add(self, name: str, place: int = 0, target: int | None = None) -> tuple[int, IO[bytes]]:
        reader, writer = os.pipe()
        source = os.fdopen(reader, "rb", buffering=0)
        self.writers.append(writer)
        self.sources.append(source)
        self.printer.follow(source, name, place, self.out if target is None else target)
        return writer, source

    @property
    def text(self) -> str:
        self.printer.flush()
        return (self.folder / "out").read_text()


@pytest.fixture
def pipe(tmp_path: Path) -> Iterator[Pipe]:
    pipe = Pipe(tmp_path)
    yield pipe
    for descriptor in (*pipe.writers, pipe.out):
        os.close(descriptor)
    for source in pipe.sources:
        source.close()


def test_lines_of_two_workers_have_their_names_and_are_not_torn(pipe: Pipe) -> None:
    (a, from_a), (b, from_b) = pipe.add("worker 0"), pipe.add("worker 1")
    os.write(a, b"half of ")
    pipe.printer.read(from_a)
    os.write(b, b"whole\n")
    pipe.printer.read(from_b)
    os.write(a, b"a line\n")
    pipe.printer.read(from_a)
    assert pipe.text == "[worker 1] whole\n[worker 0] half of a line\n"


@pytest.mark.timeout(20)
def test_what_an_ended_worker_left_is_printed_though_another_holds_its_pipe(pipe: Pipe) -> None:
    writer, source = pipe.add("worker 0")  # the writing end stays open
    os.write(writer, b"x\n" * 30_000 + b"no end")
    pipe.printer.finish(source)
    assert pipe.text == "[worker 0] x\n" * 30_000 + "[worker 0] no end\n"
    assert source not in pipe.printer.sources
    assert source.closed


@pytest.mark.timeout(20)
def test_a_reader_that_does_not_read_stops_the_reading_not_the_printer(pipe: Pipe) -> None:
    blocked, nobody = os.pipe()
    try:
        writer, source = pipe.add("worker 0", target=nobody)
        for _ in range(10_000):
            if not pipe.printer.sources:
                break
            os.write(writer, b"y" * 1023 + b"\n")
            pipe.printer.read(source)
        assert not pipe.printer.sources, "it goes on reading without bounds"
        assert pipe.printer.targets == [nobody]
        while select.select([], pipe.printer.targets, [], 0)[1]:
            pipe.printer.write()
        os.close(blocked)
        blocked = -1
        while pipe.printer.targets:
            pipe.printer.write()  # into a pipe that nobody reads any more
        assert pipe.printer.sources == [source]
    finally:
        os.close(nobody)
        if blocked >= 0:
            os.close(blocked)


def test_only_a_terminal_gets_colours(pipe: Pipe) -> None:
    terminal, slave = os.openpty()
    try:
        for place in range(2):
            writer, source = pipe.add(f"worker {place}", place, target=slave)
            os.write(writer, b"hello\n")
            pipe.printer.read(source)
        pipe.printer.flush()
        first, second = os.read(terminal, 4096).decode().splitlines()
    finally:
        os.close(terminal)
        os.close(slave)
    assert first.startswith("\x1b[")
    assert first.endswith("[worker 0] \x1b[0mhello")
    assert first.split("[worker")[0] != second.split("[worker")[0]
