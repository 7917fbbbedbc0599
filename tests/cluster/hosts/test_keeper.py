"""The keeper as a process of its own, without ssh, and what it is made of."""

from __future__ import annotations

import ast
import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil
import pytest

from cluster.hosts import keeper
from cluster.hosts.keeper import MAGIC, WINDOW_BYTES, Decoder, encode
from tests.running import clean_environment, wait_until

LIMIT_S = 30
SOURCE = Path(keeper.__file__)


def test_messages_do_not_depend_on_how_they_are_cut() -> None:
    sent = [({"start": 1, "text": "a\nb\0ü"}, b""), ({"output": 1}, b"\n{}\n\xff"), ({}, b"x" * 9)]
    data = b"".join(encode(message, payload) for message, payload in sent)
    expected = [
        ({**message, "size": len(payload)} if payload else message, payload)
        for message, payload in sent
    ]
    for size in (1, 2, 3, 7, len(data)):
        decoder = Decoder()
        pieces = [data[start : start + size] for start in range(0, len(data), size)]
        assert [found for piece in pieces for found in decoder.feed(piece)] == expected


@pytest.mark.parametrize(
    "data",
    [
        b"no json\n",
        b"[1]\n",
        b'{"size": -1}\n',
        b'{"size": "9"}\n',
        b'{"size": 99999999}\n',
        b"x" * (1 << 21),
    ],
)
def test_what_is_no_message_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError):
        list(Decoder().feed(data))


def test_silence_does_not_count_time_in_which_nobody_listened(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now_s = 100.0
    monkeypatch.setattr("time.monotonic", lambda: now_s)
    silence = keeper.Silence()
    for passed_s, has_arrived, silent_s in [
        *((1, False, 1), (1, False, 2), (1000, False, 4), (1, True, 0)),
        *((0.5, False, 0.5), (0.5, False, 1)),
    ]:
        now_s += passed_s
        silence.add(has_arrived)
        assert silence.seconds == silent_s


def test_ports_are_free_and_differ() -> None:
    ports = keeper.free_ports(200)
    assert len(set(ports)) == 200
    with contextlib.ExitStack() as stack:
        for port in ports:
            stack.enter_context(socket.socket()).bind(("", port))
        assert not set(keeper.free_ports(200)) & set(ports)


def test_it_runs_with_older_pythons() -> None:
    ast.parse(SOURCE.read_text(), feature_version=(3, 8))


def test_it_needs_the_standard_library_only() -> None:
    script = f"import runpy, sys; runpy.run_path({str(SOURCE)!r}, run_name='other')"
    subprocess.run([sys.executable, "-I", "-S", "-c", script], check=True, timeout=LIMIT_S, cwd="/")


class Session:
    """A running keeper, and the messages that it has sent."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-I", "-S", str(SOURCE)],
            bufsize=0,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=clean_environment({"SSH_CONNECTION": "10.0.0.1 40000 10.0.0.2 22"}),
        )
        assert self.process.stdin is not None and self.process.stdout is not None
        self.stdin, self._stdout = self.process.stdin, self.process.stdout
        self._decoder = Decoder()
        self._found: Iterator[tuple[dict[str, Any], bytes]] = iter(())
        assert self._stdout.read(len(MAGIC)) == MAGIC

    def send(self, **message: Any) -> None:
        self.stdin.write(encode(message))

    def start(self, number: int, script: str, **more: Any) -> None:
        environ: Mapping[str, str] = {}
        options = {"cwd": "/", "environ": environ, "has_input": False, **more}
        self.send(start=number, command=[sys.executable, "-u", "-c", script], **options)

    def next(self) -> tuple[dict[str, Any], bytes]:
        """The next message that is no beat."""
        while True:
            for message, payload in self._found:
                if "beat" not in message:
                    return message, payload
            data = self._stdout.read(1 << 16)
            assert data, "the keeper has ended"
            self._found = self._decoder.feed(data)

    def output(self, number: int, size: int) -> bytes:
        """At least ``size`` bytes of a worker's standard output."""
        output = b""
        while len(output) < size:
            message, payload = self.next()
            assert (message["output"], message["stream"]) == (number, 1), message
            output += payload
        return output


@pytest.fixture
def session() -> Iterator[Session]:
    session = Session()
    hello = {"address": "10.0.0.2"}
    assert session.next() == ({"hello": hello}, b"")
    yield session
    session.stdin.close()
    assert session.process.wait(LIMIT_S) == 0
    assert session.process.stdout is not None
    session.process.stdout.close()


def test_a_worker_gets_folder_and_variables_and_its_end_is_reported(session: Session) -> None:
    script = "import os; print(os.getcwd(), os.environ['TF_CONFIG']); os.kill(os.getpid(), 9)"
    session.start(3, script, cwd="/usr", environ={"TF_CONFIG": "{}"})
    assert session.output(3, 8) == b"/usr {}\n"
    assert session.next() == ({"ended": 3, "code": -9}, b"")
    session.start(4, "import sys; sys.stderr.write('bad\\n'); sys.exit(7)")
    assert session.next() == ({"output": 4, "stream": 2, "size": 4}, b"bad\n")
    assert session.next() == ({"ended": 4, "code": 7}, b"")


def test_signals_and_a_line_reach_a_worker(session: Session) -> None:
    session.start(1, "print(input()); print(len(input()))", has_input=True)
    session.send(to=1, line="a line")
    assert session.output(1, 7) == b"a line\n"
    message, _ = session.next()
    assert message["stream"] == 2, "its input has ended"
    while "ended" not in message:
        message, _ = session.next()
    session.start(2, "import time; print('up'); time.sleep(600)")
    assert session.output(2, 3) == b"up\n"
    session.send(to=99, signal=15)
    session.send(to=2, signal=15)
    assert session.next() == ({"ended": 2, "code": -15}, b"")


def test_a_program_that_can_not_run_is_reported(session: Session) -> None:
    session.send(start=1, command=["/no/such"], cwd="/", environ={}, has_input=False)
    message, _ = session.next()
    assert (message["ended"], message["code"]) == (1, 1)
    assert "/no/such" in message["error"]


def test_a_stream_stops_at_its_window_and_others_go_on(session: Session) -> None:
    lines = 3 * WINDOW_BYTES // 8
    session.start(1, f"for i in range({lines}): print(f'{{i:7}}')")
    output = session.output(1, WINDOW_BYTES)
    session.start(2, "print('other')")
    assert session.output(2, 6) == b"other\n"
    assert session.next() == ({"ended": 2, "code": 0}, b"")
    session.send(to=1, taken=WINDOW_BYTES, stream=1)
    output += session.output(1, WINDOW_BYTES)
    session.send(to=1, taken=10 * WINDOW_BYTES, stream=1)
    output += session.output(1, WINDOW_BYTES)
    assert output.split() == [b"%d" % i for i in range(lines)]
    assert session.next() == ({"ended": 1, "code": 0}, b"")


def test_it_looks_at_the_host(session: Session, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("x")
    (tmp_path / "run.sh").touch(0o755)
    look = {"cwd": str(tmp_path), "path": "/usr/bin:/bin", "recipe": "mine.py", "ports": 2}
    session.send(look={**look, "program": "./run.sh"})
    (looked,) = session.next()[0].values()
    assert looked["has_cwd"] is True
    assert Path(looked["program"]).samefile(tmp_path / "run.sh")
    digest = subprocess.run(["sha256sum", tmp_path / "mine.py"], capture_output=True, check=True)
    assert looked["recipe_sha256"] == digest.stdout.split()[0].decode()
    assert len(set(looked["ports"])) == 2
    session.send(look={**look, "cwd": "/no/such", "program": "no-such-program"})
    (looked,) = session.next()[0].values()
    assert (looked["has_cwd"], looked["program"], looked["recipe_sha256"]) == (False, None, None)


def test_beats_say_whether_workers_run(session: Session) -> None:
    session.start(1, "import time; print('up'); time.sleep(600)")
    session.output(1, 3)
    (child,) = children(session.process.pid)
    child.suspend()
    wait_until(lambda: child.status() == psutil.STATUS_STOPPED, LIMIT_S, "it is stopped")
    decoder, states = Decoder(), []
    while states != ["T"]:
        for message, _ in decoder.feed(session.process.stdout.read(1 << 16)):  # type: ignore[union-attr]
            states = [stat[0] for stat in message["beat"].values()]
            assert list(message["beat"]) == ["1"]


# A worker with a child that the keeper does not know.
PARENT = """
import subprocess, sys, time
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print("up")
time.sleep(600)
"""


def children(pid: int) -> list[psutil.Process]:
    """The workers of a keeper: its children but the guard, which shares its command line."""
    found = psutil.Process(pid).children()
    return [each for each in found if each.cmdline()[-1] != str(SOURCE)]


@pytest.mark.parametrize("how", ["end of input", "killed"])
def test_nothing_outlives_the_keeper(how: str) -> None:
    session = Session()
    session.next()
    session.start(1, PARENT)
    session.output(1, 3)
    everybody = psutil.Process(session.process.pid).children(recursive=True)
    assert len(everybody) == 3, "worker, its child and the guard"
    if how == "end of input":
        session.stdin.close()
    else:
        session.process.kill()
    session.process.wait(LIMIT_S)
    assert psutil.wait_procs(everybody, timeout=LIMIT_S)[1] == []
    session.stdin.close()
    session.process.stdout.close()  # type: ignore[union-attr]


def test_workers_may_save_when_the_host_shuts_down(session: Session) -> None:
    """A spare that does not react to signals ends with its input."""
    saves = """
import signal, sys, time
def stop(number, frame):
    time.sleep(0.5)
    sys.stdout.write("saved")
    sys.exit(143)
signal.signal(signal.SIGTERM, stop)
print("up")
time.sleep(600)
"""
    waits = "import signal, sys; signal.signal(15, signal.SIG_IGN); print('up'); sys.stdin.read()"
    session.start(1, waits, has_input=True)
    assert session.output(1, 3) == b"up\n"
    session.start(2, saves)
    assert session.output(2, 3) == b"up\n"
    session.process.terminate()
    assert session.next() == ({"ended": 1, "code": 0}, b"")
    assert session.output(2, 5) == b"saved"
    assert session.next() == ({"ended": 2, "code": 143}, b"")


def test_it_ends_with_its_workers_when_nothing_arrives(tmp_path: Path) -> None:
    """With a copy of the keeper that is less patient."""
    text = SOURCE.read_text().replace("SILENCE_S = 8.0", "SILENCE_S = 2.0")
    assert text != SOURCE.read_text()
    copy = tmp_path / "keeper.py"
    copy.write_text(text)
    reader, writer = os.pipe()  # never written to
    start = encode(
        {"start": 1, "command": ["sleep", "600"], "cwd": "/", "environ": {}, "has_input": False}
    )
    os.write(writer, start)
    began_s = time.monotonic()
    command = [sys.executable, "-I", "-S", str(copy)]
    process = subprocess.Popen(command, stdin=reader, stdout=subprocess.DEVNULL)
    wait_until(lambda: len(psutil.Process(process.pid).children()) == 2, LIMIT_S, "it has started")
    everybody = psutil.Process(process.pid).children()
    assert process.wait(LIMIT_S) == 0
    assert time.monotonic() - began_s > 2
    assert psutil.wait_procs(everybody, timeout=LIMIT_S)[1] == []
    os.close(reader)
    os.close(writer)
