from __future__ import annotations

import dataclasses
import fcntl
import io
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from tests.running import ROOT, clean_environment
from tests.searches import ACCURACY, search
from tfdp.search import screen
from tfdp.search.screen import RunningTrial, Screen
from tfdp.search.table import Row, Table

LIMIT_S = 60


def running(table: Table) -> dict[int, RunningTrial]:
    return {
        row.number: RunningTrial(f"core {row.number % 2}", 3 * row.steps, time.monotonic() - 2)
        for row in table
        if row.state == "running"
    }


def picture(table: Table, width: int, height: int, encoding: str = "utf-8") -> list[str]:
    """The lines of a table on a terminal of that size."""
    view = Screen(ACCURACY, 40, 4)
    view.update(table, running(table))
    file = io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors="backslashreplace")
    console = Console(file=file, width=width, height=height, force_terminal=True, color_system=None)
    console.print(view._picture(console))
    file.seek(0)
    return file.read().splitlines()


def test_all_trials_are_shown_where_they_fit() -> None:
    _, table = search(trials=12)
    lines = picture(table, 120, 40)
    assert re.match(r"10/40 trials  1 failed  best accuracy 0\.\d+ .*2 of 4 slots busy$", lines[0])
    for row in table:
        (line,) = (line for line in lines if re.match(rf" *\*?{row.number} ", line))
        assert f"{row.params['learning_rate']:.4g}" in line
        assert row.params["optimizer"] in line
        assert row.objective is None or f"{row.objective:.4g}" in line
        assert ("*" in line) == (table.best is not None and row.number == table.best.number)
        expected = f"core {row.number % 2}, 2 s" if row.state == "running" else row.state
        assert expected in line
        assert (f"{row.steps}→{3 * row.steps}" in line) == (row.state == "running")


@pytest.mark.parametrize("height", [3, 8, 9, 12, 24, 50])
@pytest.mark.parametrize("width", [30, 80, 200])
@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_it_fits_the_terminal(width: int, height: int, encoding: str) -> None:
    _, table = search()
    lines = picture(table, width, height, encoding)
    assert len(lines) < height  # one more is where the cursor stands
    assert max(map(len, lines)) <= width
    assert encoding == "utf-8" or "".join(lines).isascii()


def test_a_value_of_several_lines_takes_one() -> None:
    _, table = search(trials=1, running=0)
    odd = dataclasses.replace(table[0], params={"layers": "[bold]a\nb\tc"})
    lines = picture(Table([odd], ACCURACY), 120, 24)
    (line,) = (line for line in lines if "[bold]a b c" in line)
    assert "complete" in line


def test_few_places_are_for_the_best_the_running_and_the_newest() -> None:
    study, table = search()
    best = sorted((t for t in study.trials if t.value is not None), key=lambda t: -t.value)
    assert table.best is not None and len(best) > screen.BEST_SHOWN

    def numbers(places: int) -> list[int]:
        return [row.number for row in screen.chosen(table, {38, 39}, places)]

    assert numbers(0) == numbers(-3) == []
    assert numbers(1) == [best[0].number]
    assert numbers(3) == [best[0].number, 38, 39]
    assert set(numbers(7)) == {38, 39} | {trial.number for trial in best[:5]}
    assert set(numbers(9)) >= {36, 37}
    assert numbers(40) == list(range(40))


def test_without_a_terminal_each_event_is_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    def row(number: int, **changes: Any) -> Row:
        params = {"rate": 0.123456, "units": 8}
        folder = f"trials/{number:04d}"
        plain = {"number": number, "state": "running", "params": params, "hparams": params}
        return Row(**plain | {"folder": folder} | changes)

    def judged(number: int, steps: int, value: float, state: Any = "running") -> Row:
        return row(number, steps=steps, rungs={3: 0.5, steps: value}, objective=value, state=state)

    def on(slot: str, steps: int) -> RunningTrial:
        return RunningTrial(slot, steps, time.monotonic())

    with Screen(ACCURACY, 4, 2) as view:
        first = [row(0), row(1)]
        view.update(Table([], ACCURACY), {})
        view.update(Table(first, ACCURACY), {0: on("core 0", 3), 1: on("core 1", 3)})
        view.update(Table(first, ACCURACY), {0: on("core 0", 3), 1: on("core 1", 3)})
        view.event("trial 1 was killed: started again from step 2")
        view.update(Table([judged(0, 3, 0.5), first[1]], ACCURACY), {1: on("core 1", 3)})
        second = [judged(0, 3, 0.5), judged(1, 3, 0.5, "pruned")]
        view.update(Table(second, ACCURACY), {0: on("core 1", 9)})
        third = [
            judged(0, 9, 0.75, "complete"),
            second[1],
            row(2, state="failed", failure="it said\nnan"),
        ]
        view.update(Table(third, ACCURACY), {})
        view.close()
    assert capsys.readouterr().err.splitlines() == [
        "tfdp: trial 0 starts (to step 3, core 0): rate=0.1235 units=8",
        "tfdp: trial 1 starts (to step 3, core 1): rate=0.1235 units=8",
        "tfdp: trial 1 was killed: started again from step 2",
        "tfdp: trial 0 may go on: accuracy 0.5 at step 3",
        "tfdp: trial 1 is pruned: accuracy 0.5 at step 3",
        "tfdp: trial 0 goes on (to step 9, core 1)",
        "tfdp: trial 0 is complete: accuracy 0.75 at step 9, the best so far",
        "tfdp: trial 2 failed: it said nan",
    ]


def test_what_an_earlier_process_did_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    _, table = search()
    with Screen(ACCURACY, 40, 4) as view:
        view.update(table, {})
    assert capsys.readouterr().err == "tfdp: 38 of 40 trials are done: going on\n"


def test_a_table_that_is_not_as_expected_ends_nothing() -> None:
    _, table = search(trials=3)
    with Screen(ACCURACY, 40, 4) as view:
        view.update(table, {})
        view.update(Table([dataclasses.replace(table[0], params=None)], ACCURACY), {0: None})  # type: ignore[arg-type,dict-item]


class OddTerminal(io.StringIO):
    """A terminal to which nothing can be written from some time on."""

    is_gone = False

    def isatty(self) -> bool:
        return True

    def write(self, text: str) -> int:
        if self.is_gone:
            raise OSError(5, "Input/output error")
        return super().write(text)


def test_a_terminal_that_takes_nothing_more_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    _, table = search()
    monkeypatch.setattr(sys, "stderr", terminal := OddTerminal())
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(screen, "REFRESH_S", 0)
    with Screen(ACCURACY, 40, 4) as view:
        view.update(Table(table[:9], ACCURACY), {})
        assert "9/40 trials" in terminal.getvalue()
        terminal.is_gone = True
        view.update(table, running(table))
        view.event("trial 3 was killed: started again")
        view.update(table, {})
    assert sys.stderr is terminal  # and not what ``Live`` puts there


# A search of 40 trials, each of them one update of the screen; then a file tells that it ended.
SEARCH = """
import pathlib, sys, time, optuna
from tests.searches import ACCURACY, search
from tfdp.search import screen
from tfdp.search.table import Table

optuna.logging.set_verbosity(optuna.logging.WARNING)
screen.REFRESH_S = 0
_, table = search()
with screen.Screen(ACCURACY, 40, 4) as view:
    for count in range(41):
        rows = table[:count]
        running = {row.number: screen.RunningTrial("core 0", 9, time.monotonic())
                   for row in rows if row.state == "running"}
        view.update(Table(rows, ACCURACY), running)
        if count == 7:
            pathlib.Path(sys.argv[1], "begun").touch()
            view.event("trial 3 was killed: started again")
            while len(sys.argv) > 2 and not pathlib.Path(sys.argv[2]).exists():
                time.sleep(0.01)
pathlib.Path(sys.argv[1], "ended").touch()
"""


def start(folder: Path, *words: str, **options: Any) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-c", SEARCH, str(folder), *words],
        **{"cwd": ROOT, "env": clean_environment({"TERM": "xterm"}), **options},
    )


def on_terminal(
    folder: Path, *words: str, size: tuple[int, int] = (24, 120)
) -> tuple[subprocess.Popen[bytes], int]:
    """Starts the search on a terminal of so many rows and columns; the other end belongs to us."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", *size, 0, 0))
    process = start(folder, *words, stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    return process, ours


def read_all(descriptor: int) -> str:
    data = b""
    try:
        while more := os.read(descriptor, 1 << 16):
            data += more
    except OSError:  # how a terminal's other end closes
        pass
    os.close(descriptor)
    return data.decode()


def ended(process: subprocess.Popen[bytes], folder: Path) -> bool:
    try:
        return process.wait(LIMIT_S) == 0 and (folder / "ended").exists()
    finally:
        process.kill()


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_on_a_terminal_the_table_is_drawn_in_place(tmp_path: Path) -> None:
    process, terminal = on_terminal(tmp_path)
    text = read_all(terminal)
    assert ended(process, tmp_path)
    best = search()[1].best
    assert best is not None
    last = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", text.rpartition("38/40 trials")[2])
    assert f"*{best.number} " in last and f"{best.objective:.4g}" in last
    assert text.count("\x1b[2K") > 40 * 8  # lines that were drawn anew
    assert "tfdp: trial 3 was killed: started again" in text
    assert "tfdp: trial 5 failed: the loss is nan at step 2" in text
    assert "tfdp: trial 0" not in text  # is in the table


def test_a_terminal_that_goes_away_ends_nothing(tmp_path: Path) -> None:
    process, terminal = on_terminal(tmp_path, str(tmp_path / "gone"))
    until((tmp_path / "begun").exists)
    os.close(terminal)
    (tmp_path / "gone").touch()
    assert ended(process, tmp_path)


def test_a_closed_pipe_ends_nothing(tmp_path: Path) -> None:
    process = start(tmp_path, str(tmp_path / "gone"), stderr=subprocess.PIPE)
    until((tmp_path / "begun").exists)
    assert process.stderr is not None
    process.stderr.close()
    (tmp_path / "gone").touch()
    assert ended(process, tmp_path)


@pytest.mark.parametrize("size", [(1, 1), (2, 10), (0, 0)])
def test_a_tiny_terminal_ends_nothing(size: tuple[int, int], tmp_path: Path) -> None:
    process, terminal = on_terminal(tmp_path, size=size)
    read_all(terminal)
    assert ended(process, tmp_path)


def test_a_terminal_without_utf8_shows_ascii(tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 120, 0, 0))
    env = clean_environment({"TERM": "xterm", "PYTHONIOENCODING": "ascii:backslashreplace"})
    process = start(tmp_path, stdin=theirs, stdout=theirs, stderr=theirs, env=env)
    os.close(theirs)
    text = read_all(ours)
    assert ended(process, tmp_path)
    assert text.isascii() and "3->9" in text
